//! What the load is put on: the broker as a child process, pinned to a core of its own, or any broker by address.
//!
//! The child is this program again (`serve-child`), so that one binary is all there is and CPU and memory of server
//! and load are told apart. It says where it listens, answers commands on its standard input with a line of JSON
//! each, and stops cleanly when that input ends: a load that dies leaves no server behind.
//!
//! ```text
//! child:  listening on 127.0.0.1:40123
//! us:     counters              child:  {"shard":{..},"egress":{..}}
//! us:     forget-stages         child:  {}
//! us:     stages                child:  {"accept":"<base64>",..}
//! us:     forget-tail           child:  {}
//! us:     delete cell-007       child:  {"deleted":"cell-007"}
//! us:     (end of input)        child:  {"shard":..}, exit status 0
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ringlog::shard::{Commit, Stage};
use ringlog::sys::topology::pin_to;
use ringlog::{Ack, Egress, Engine, EngineConfig, EngineCounters, Ingress, Shard, block_on};
use ringlog_broker::BrokerConfig;
use serde_json::{Value, json};

use crate::handicap;
use crate::recorder::Latencies;
use crate::schedule::Cell;
use crate::spec::{Pair, RunSpec};

/// The largest batch that a child takes.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// How a child says where it listens.
pub(crate) const LISTENING: &str = "listening on ";
/// Lines of a child's stderr that are shown when it died.
const LAST_WORDS_LINES: usize = 30;

/// Serve as the child of a comparison: not for people.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeChild {
    /// Where the log is kept
    #[arg(long)]
    data_dir: PathBuf,
    /// How batches get to disk
    #[arg(long)]
    ingress: Ingress,
    /// How batches get to sockets
    #[arg(long)]
    egress: Egress,
    /// What an answer to a producer promises
    #[arg(long)]
    ack: Ack,
    /// Where appends that must be durable are safe first
    #[arg(long)]
    commit: Option<Commit>,
    /// The core to run on
    #[arg(long)]
    core: usize,
    /// Burn so much more CPU than is used
    #[arg(long)]
    handicap_percent: Option<f64>,
}

/// A broker that runs the load's requests.
pub enum Target {
    /// A child of this process.
    Child(Box<Server>),
    /// Somebody's broker.
    Wire(SocketAddr),
}

/// A child process and the way to talk to it.
pub struct Server {
    row: Pair,
    process: Child,
    /// Absent once it was told to stop.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
    data_dir: PathBuf,
    stderr: PathBuf,
}

impl Target {
    /// Starts the broker for a row; `more` are further words of [`ServeChild`].
    ///
    /// # Errors
    /// When it does not come up; its own words are in the error.
    pub fn start_child(
        row: &Pair,
        ack: &str,
        more: &[&str],
        core: usize,
        data_dir: &Path,
        logs: &Path,
    ) -> Result<Target> {
        let mut words = vec!["--ingress", &row.ingress, "--egress", &row.egress, "--ack", ack];
        words.extend(more);
        Target::start("serve-child", &words, row, core, data_dir, logs)
    }

    /// Starts the floor, or what takes its place, for one cell: the command, and what is said to it alone.
    ///
    /// # Errors
    /// As [`Target::start_child`].
    pub(crate) fn start_floor(
        (command, own_words): (&str, &[String]),
        cell: &Cell,
        spec: &RunSpec,
        stored: Option<&Path>,
        core: usize,
        data_dir: &Path,
        logs: &Path,
    ) -> Result<Target> {
        let consumers = cell.load.following(spec.consumers);
        let in_flight = u64::from(spec.producers) * u64::from(spec.window) * cell.batch_bytes as u64;
        let numbers = [u64::from(spec.partitions), u64::from(consumers), in_flight].map(|n| n.to_string());
        let [partitions, consumers, in_flight] = &numbers;
        let mut words =
            vec!["--partitions", partitions, "--consumers", consumers, "--in-flight-bytes", in_flight];
        words.extend(own_words.iter().map(String::as_str));
        if let Some(stored) = stored {
            let stored = stored.to_str().with_context(|| format!("{} is not UTF-8", stored.display()))?;
            words.extend(["--stored", stored]);
        }
        Target::start(command, &words, &cell.row, core, data_dir, logs)
    }

    fn start(
        command: &str,
        words: &[&str],
        row: &Pair,
        core: usize,
        data_dir: &Path,
        logs: &Path,
    ) -> Result<Target> {
        fs::create_dir_all(data_dir).with_context(|| format!("creating {}", data_dir.display()))?;
        // The repeat of a row has a directory of its own, and so a log.
        let name = data_dir.file_name().and_then(|name| name.to_str()).unwrap_or("server");
        let stderr = logs.join(format!("server-{name}.log"));
        let errors = File::create(&stderr).with_context(|| format!("creating {}", stderr.display()))?;
        let program = std::env::current_exe().context("finding this program")?;
        let mut process = Command::new(program)
            .arg(command)
            .arg("--data-dir")
            .arg(data_dir)
            .args(words)
            .args(["--core", &core.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("starting the server")?;
        let commands = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("the server has no standard output")?);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let data_dir = data_dir.to_owned();
        let mut server = Server { row: row.clone(), process, commands, answers, address, data_dir, stderr };
        let line = server.line()?;
        let address = line.strip_prefix(LISTENING).and_then(|address| address.trim().parse().ok());
        server.address = address.with_context(|| format!("the server of {row} said `{}`", line.trim()))?;
        Ok(Target::Child(Box::new(server)))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Target::Child(server) => server.address,
            Target::Wire(address) => *address,
        }
    }

    /// Its process, where it is ours.
    #[must_use]
    pub fn process_id(&self) -> Option<i32> {
        match self {
            Target::Child(server) => i32::try_from(server.process.id()).ok(),
            Target::Wire(_) => None,
        }
    }

    /// Where its log lies, where that is on this machine.
    #[must_use]
    pub fn data_dir(&self) -> Option<&Path> {
        match self {
            Target::Child(server) => Some(&server.data_dir),
            Target::Wire(_) => None,
        }
    }

    /// Its own counters.
    ///
    /// # Errors
    /// When it died.
    pub fn counters(&mut self) -> Result<Value> {
        match self {
            Target::Child(server) => server.ask("counters"),
            Target::Wire(_) => Ok(Value::Null),
        }
    }

    /// Forgets where the time of appends went so far.
    ///
    /// # Errors
    /// When it died.
    pub fn forget_stages(&mut self) -> Result<()> {
        match self {
            Target::Child(server) => server.ask("forget-stages").map(drop),
            Target::Wire(_) => Ok(()),
        }
    }

    /// Where the time of appends went since it was told to forget; nothing of a server that does not say.
    ///
    /// # Errors
    /// When it died, or says something else.
    pub fn stages(&mut self) -> Result<BTreeMap<String, Latencies>> {
        match self {
            Target::Child(server) => {
                Ok(serde_json::from_value(server.ask("stages")?).context("the stages of a server")?)
            }
            Target::Wire(_) => Ok(BTreeMap::new()),
        }
    }

    /// Lets go of what its memory holds of the log: what is read then comes from files.
    ///
    /// # Errors
    /// When it died.
    pub fn forget_tail(&mut self) -> Result<()> {
        match self {
            Target::Child(server) => server.ask("forget-tail").map(drop),
            Target::Wire(_) => Ok(()),
        }
    }

    /// Deletes a topic that a cell is done with.
    ///
    /// # Errors
    /// When it died.
    pub fn delete_topic(&mut self, topic: &str) -> Result<()> {
        match self {
            Target::Child(server) => server.ask(&format!("delete {topic}")).map(drop),
            Target::Wire(_) => Ok(()),
        }
    }

    /// Stops it cleanly.
    ///
    /// # Errors
    /// When it died or did not stop cleanly.
    pub fn stop(&mut self) -> Result<()> {
        match self {
            Target::Child(server) => server.stop(),
            Target::Wire(_) => Ok(()),
        }
    }

    /// What it left on stderr, for an error that may be its fault.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        match self {
            Target::Child(server) => server.last_words(),
            Target::Wire(_) => None,
        }
    }
}

impl Server {
    fn ask(&mut self, command: &str) -> Result<Value> {
        let commands = self.commands.as_mut().context("the server was told to stop")?;
        // A server that is gone is found out by reading, with its last words.
        let _ = writeln!(commands, "{command}");
        let line = self.line()?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("the server said `{line}`"))?;
        match answer.get("error") {
            Some(error) => bail!("the server of {} answered `{command}` with {error}", self.row),
            None => Ok(answer),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let bytes = self.answers.read_line(&mut line).context("reading what the server says")?;
        if bytes > 0 {
            return Ok(line);
        }
        let status = self.process.wait().context("waiting for the server")?;
        Err(anyhow!("the server of {} ended: {status}{}", self.row, self.last_words().unwrap_or_default()))
    }

    fn stop(&mut self) -> Result<()> {
        drop(self.commands.take());
        let status = self.process.wait().context("waiting for the server")?;
        ensure!(
            status.success(),
            "the server of {} did not stop cleanly: {status}{}",
            self.row,
            self.last_words().unwrap_or_default()
        );
        Ok(())
    }

    fn last_words(&self) -> Option<String> {
        let text = fs::read_to_string(&self.stderr).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS_LINES)..];
        (!last.is_empty()).then(|| format!("\nserver {}: {}", self.row, last.join("\n  ")))
    }
}

impl Drop for Server {
    /// A run that failed takes its servers with it.
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The child's life.
///
/// # Errors
/// When the core is not allowed, the data directory cannot be opened, or the engine does not stop cleanly.
pub fn serve_child(told: &ServeChild) -> Result<()> {
    // Before the engine starts any thread: all of them inherit the core.
    pin_to(told.core)?;
    if let Some(percent) = told.handicap_percent {
        handicap::begin(percent);
    }
    let mut config = EngineConfig::new(&told.data_dir);
    config.cores = Some(vec![told.core]);
    config.shard.ingress = told.ingress;
    // The load's batches are all of our own making.
    config.shard.trusted_producers = !told.ingress.checks_payload();
    config.shard.egress = told.egress;
    config.shard.topic_defaults.ack = told.ack;
    if let Some(commit) = told.commit {
        config.shard.commit = commit;
    }
    config.shard.topic_defaults.log.batch_bytes_max = BATCH_BYTES_MAX as u32;
    let engine = Engine::open(config).with_context(|| format!("opening {}", told.data_dir.display()))?;
    eprintln!("{}", engine.capabilities());
    let broker = BrokerConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)));
    let serving = ringlog_broker::start(&engine, broker)?;
    say(&format!("{LISTENING}{}", serving.address()));
    for line in std::io::stdin().lines() {
        let line = line.context("reading commands")?;
        let answer =
            obey(&engine, line.trim()).unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        say(&answer.to_string());
    }
    let last = block_on(engine.counters())?.swap_remove(0);
    engine.close().context("stopping cleanly")?;
    say(&described(&last).to_string());
    Ok(())
}

fn obey(engine: &Engine, command: &str) -> Result<Value> {
    match command.split_once(' ') {
        Some(("delete", topic)) => {
            block_on(engine.delete_topic(topic))?;
            Ok(json!({"deleted": topic}))
        }
        None if command == "counters" => Ok(described(&block_on(engine.counters())?[0])),
        None if command == "forget-stages" => {
            block_on(engine.on_shard(|shard| async move { shard.stages().clear() }))?;
            Ok(json!({}))
        }
        None if command == "forget-tail" => {
            block_on(engine.on_shard(|shard| async move { shard.drop_tail_caches() }))?;
            Ok(json!({}))
        }
        None if command == "stages" => {
            let copy = |shard: Shard| async move {
                Stage::ALL.map(|stage| (stage.name(), shard.stages().histogram(stage)))
            };
            let stages = block_on(engine.on_shard(copy))?.into_iter();
            let stages = stages.map(|(name, histogram)| (name, Latencies::from(histogram)));
            Ok(serde_json::to_value(stages.collect::<BTreeMap<_, _>>())?)
        }
        _ => bail!("there is no command `{command}`"),
    }
}

/// Nobody who listens any more is no reason to stop uncleanly.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn described(counters: &EngineCounters) -> Value {
    let ring = counters.shard.ring;
    let arena = counters.shard.arena;
    let zero_copy = counters.shard.zero_copy;
    let egress = counters.egress.iter().map(|(egress, counted)| {
        let counted = json!({
            "bytes": counted.bytes,
            "fallback_bytes": counted.fallback_bytes,
            "sends": counted.sends,
            "plain_sends": counted.plain_sends,
            "cold_reads": counted.cold_reads,
            "shared_reads": counted.shared_reads,
        });
        (egress.name().to_owned(), counted)
    });
    let choices = counters.choices.iter().filter(|(_, counted)| counted.pieces > 0);
    let choices = choices.map(|(reason, counted)| {
        (reason.name().to_owned(), json!({"pieces": counted.pieces, "bytes": counted.bytes}))
    });
    json!({
        "shard": {
            "ingress_bytes": counters.shard.ingress_bytes,
            "ingress_copied_bytes": counters.shard.ingress_copied_bytes,
            "ingress_in_place_bytes": counters.shard.ingress_in_place_bytes,
            "last_block_copied_bytes": counters.shard.last_block_copied_bytes,
            "ingress_fallback_bytes": counters.shard.ingress_fallback_bytes,
            "tail_cache_bytes": counters.shard.tail_cache_bytes,
            "system_calls": ring.system_calls,
            "submissions": ring.submissions,
            "write_bytes": ring.write_bytes,
            "writes": ring.writes,
            "syncs": ring.syncs,
            "longest_tick_ns": ring.longest_tick_nanos,
            "arena_mapped_bytes": arena.mapped_bytes,
            "arena_registered_bytes": arena.registered_bytes,
        },
        "zero_copy": {
            "sends": zero_copy.sends,
            "sent_bytes": zero_copy.sent_bytes,
            "copied_sends": zero_copy.copied_sends,
            "copied_bytes": zero_copy.copied_bytes,
            "full_sends": zero_copy.full_sends,
            "refused_sends": zero_copy.refused_sends,
            "unreleased_bytes": zero_copy.unreleased_bytes,
            "unreleased_bytes_most": zero_copy.unreleased_bytes_most,
        },
        "egress": egress.collect::<serde_json::Map<_, _>>(),
        "choices": choices.collect::<serde_json::Map<_, _>>(),
    })
}
