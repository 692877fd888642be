//! What is measured: any Kafka-protocol broker by its address, or our broker as a child of this process.
//!
//! ```text
//! wire=127.0.0.1:9092
//! child
//! child=copy+tail
//! child=copy+tail,ack=written,commit=files
//! ```

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use ringlog::{Egress, Ingress};
use serde::{Deserialize, Serialize};

use super::process::{Process, listener};
use super::promise::Promise;
use crate::spec::{Ack, Pair};
use crate::target::Target;

/// A target as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A broker that runs already.
    Wire {
        /// As it was written.
        name: String,
        /// Where it is.
        address: SocketAddr,
    },
    /// Our broker, started for the run.
    Child {
        /// How bytes move.
        row: Pair,
        /// What an answer promises, where that is not the workload's.
        ack: Option<String>,
        /// Where durable appends are safe first, where that is not the engine's default.
        commit: Option<String>,
    },
}

/// What is known of a target in a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// As it was asked for.
    pub name: String,
    /// Its process, or why that is not known; CPU and memory are then not known either.
    pub process: Result<Process, String>,
    /// What its answers mean, by its own settings.
    pub promise: Promise,
}

impl Asked {
    /// Starts it where it is ours.
    ///
    /// # Errors
    /// When it does not come up; its own words are in the error.
    pub fn start(&self, ack: Ack, core: usize, data_dir: &Path, logs: &Path) -> Result<Target> {
        match self {
            Asked::Wire { address, .. } => Ok(Target::Wire(*address)),
            Asked::Child { row, ack: own, commit } => {
                let ack = own.clone().unwrap_or_else(|| ack.to_string());
                let more = commit.iter().flat_map(|commit| ["--commit", commit]);
                Target::start_child(row, &ack, &more.collect::<Vec<_>>(), core, data_dir, logs)
            }
        }
    }

    /// Its process.
    ///
    /// # Errors
    /// Why that cannot be known.
    pub fn process(&self, started: &Target) -> Result<Process, String> {
        match started.process_id() {
            Some(id) => Ok(Process::of(id)),
            None => listener(started.address()),
        }
    }

    /// One word for file names: `wire` or `child`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Asked::Wire { .. } => "wire",
            Asked::Child { .. } => "child",
        }
    }
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Asked, String> {
        if let Some(name) = text.strip_prefix("wire=") {
            let addresses = name.to_socket_addrs();
            let mut addresses = addresses
                .map_err(|error| format!("{text}: `{name}` is no address ({error}): write HOST:PORT"))?;
            let address = addresses.next().ok_or_else(|| format!("{text}: no address"))?;
            return Ok(Asked::Wire { name: name.to_owned(), address });
        }
        let words = match text.split_once('=') {
            None if text == "child" => "",
            Some(("child", words)) => words,
            _ => {
                return Err(format!(
                    "`{text}` is no target: write wire=HOST:PORT, child, or child=ingress+egress"
                ));
            }
        };
        let (mut row, mut ack, mut commit) = (None, None, None);
        for word in words.split(',').filter(|_| !words.is_empty()) {
            let (place, value) = match word.split_once('=') {
                None => (&mut row, parsed_pair(word)?),
                Some(("ack", value)) => (&mut ack, checked::<ringlog::Ack>(value)?),
                Some(("commit", value)) => (&mut commit, checked::<ringlog::shard::Commit>(value)?),
                Some((name, _)) => return Err(format!("{text}: a child has ack and commit, no `{name}`")),
            };
            if place.replace(value).is_some() {
                return Err(format!("{text}: `{word}` is the second of its kind"));
            }
        }
        let row = row.as_deref().unwrap_or("copy+tail").parse()?;
        Ok(Asked::Child { row, ack, commit })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asked::Wire { name, .. } => write!(f, "wire={name}"),
            Asked::Child { row, ack, commit } => {
                write!(f, "child={row}")?;
                ack.iter().try_for_each(|ack| write!(f, ",ack={ack}"))?;
                commit.iter().try_for_each(|commit| write!(f, ",commit={commit}"))
            }
        }
    }
}

fn parsed_pair(word: &str) -> Result<String, String> {
    let pair: Pair = word.parse()?;
    pair.ingress.parse::<Ingress>().map_err(|error| error.to_string())?;
    let egress = pair.egress.parse::<Egress>().map_err(|error| error.to_string())?;
    match egress.delivers() {
        true => Ok(pair.to_string()),
        false => Err(format!("{word}: {egress} discards, and what nobody gets cannot be verified")),
    }
}

fn checked<T: FromStr<Err: fmt::Display>>(value: &str) -> Result<String, String> {
    value.parse::<T>().map(|_| value.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Asked>().unwrap_err()
    }

    #[test]
    fn targets_are_read_as_they_are_written() {
        for (text, read) in [
            ("child", "child=copy+tail"),
            ("child=in_place+tail", "child=in_place+tail"),
            ("child=ack=written", "child=copy+tail,ack=written"),
            ("child=commit=journal,copy+direct", "child=copy+direct,commit=journal"),
            ("wire=127.0.0.1:9092", "wire=127.0.0.1:9092"),
        ] {
            let asked: Asked = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(asked.to_string(), read);
            assert_eq!(read.parse(), Ok(asked), "{text}");
        }
    }

    #[test]
    fn what_is_no_target_is_refused_in_words() {
        assert!(refused("kafka").contains("`kafka` is no target"));
        assert!(refused("wire=").contains("no address"), "{}", refused("wire="));
        assert!(refused("wire=127.0.0.1").contains("write HOST:PORT"));
        assert!(refused("child=copy").contains("`copy` is not a pair"));
        assert!(refused("child=copy+magic").contains("magic"));
        assert!(refused("child=copy+null").contains("null discards"));
        assert!(refused("child=ack=perhaps").contains("perhaps"));
        assert!(refused("child=commit=later").contains("later"));
        assert!(refused("child=depth=4").contains("no `depth`"));
        assert!(refused("child=ack=written,ack=durable").contains("the second of its kind"));
        assert!(refused("children").contains("is no target"));
    }
}
