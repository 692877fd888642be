//! `ringlog-broker serve`: the log server as a program.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use ringlog::shard::{Commit, JournalConfig, ShardConfig};
use ringlog::sys::{Flushes, topology};
use ringlog::{Ack, Egress, Engine, EngineConfig, Ingress, TopicConfig, block_on};
use ringlog_broker::{BrokerConfig, start};

#[derive(Parser)]
#[command(name = "ringlog-broker", version, about = "A log server that speaks the Kafka protocol")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a data directory.
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// Where everything is kept; made if it is not there.
    #[arg(long)]
    data_dir: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9092")]
    listen: SocketAddr,
    /// Where clients are told to come; needed when listening on a wildcard address.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    advertise: Option<(String, u16)>,
    /// How batches get to disk; a name that there is not lists those that there are.
    #[arg(long, default_value_t = Ingress::Copy)]
    ingress: Ingress,
    /// Every producer sends only what was checked before, as a mirror does: allows `--ingress spliced`, which looks at no
    /// checksum, so that a damaged batch is accepted, found by its consumers, and may end the log at a start after a crash.
    #[arg(long)]
    trusted_producers: bool,
    /// How batches get to sockets; a name that there is not lists those that there are.
    #[arg(long, default_value_t = Egress::Tail, value_parser = egress)]
    egress: Egress,
    /// What an append waits for unless its topic says otherwise: memory, written, durable.
    #[arg(long, default_value_t = Ack::Durable)]
    ack: Ack,
    /// Where appends that must be durable are safe first: journal (small ones of all partitions in one file of the shard,
    /// one flush for all), device (each partition's segment, one flush of the file system for all) or files (each
    /// partition's segment, one flush each).
    #[arg(long, default_value_t = Commit::Journal)]
    commit: Commit,
    /// The largest batch that goes through the journal, in bytes; larger ones go to their segments directly.
    #[arg(long, default_value_t = JournalConfig::default().batch_bytes_max)]
    journal_batch_bytes: u64,
    /// What one partition may give to one round of the journal, in bytes; with more it goes to its segment directly.
    #[arg(long, default_value_t = JournalConfig::default().round_bytes_max)]
    journal_round_bytes: u64,
    /// Partitions of topics that are created without a number.
    #[arg(long, default_value_t = 1)]
    partitions: i32,
    /// Whether asking for a topic creates it.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    auto_create_topics: bool,
    /// The largest batch.
    #[arg(long, default_value_t = 1_048_588)]
    message_bytes_max: u32,
    /// Where segments are sealed, in bytes.
    #[arg(long, default_value_t = 1 << 30)]
    segment_bytes: u64,
    /// Segments go when their newest record is older; -1 for never.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    retention_ms: i64,
    /// Beyond this size of a partition old segments go; -1 for never.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    retention_bytes: i64,
    /// How long nobody has to do with a partition until it keeps no open file and no memory.
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..))]
    sleep_after_ms: u64,
    /// Walk every partition at the start and check each of its bytes, as after a crash that left no manifest: what rotted
    /// since is found and fenced.
    #[arg(long)]
    verify: bool,
    /// This node's number in a new data directory.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(0..))]
    node_id: i32,
    /// The cores to run on, a shard on each: how many (4), or which (0,2-5; 3-3 for one); all allowed ones within the
    /// CPU quota if not given.
    #[arg(long, value_name = "N|LIST", value_parser = cores)]
    cores: Option<Cores>,
}

fn egress(text: &str) -> Result<Egress, String> {
    match text.parse::<Egress>()? {
        egress if egress.delivers() => Ok(egress),
        egress => Err(format!("{egress} discards what clients wait for; it is for benchmarks")),
    }
}

/// What `--cores` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cores {
    These(Vec<usize>),
    Count(usize),
}

fn cores(text: &str) -> Result<Cores, String> {
    let number = |word: &str| word.parse::<usize>().map_err(|_| format!("\"{word}\" is not a number"));
    if !text.contains(['-', ',']) {
        return number(text).map(Cores::Count);
    }
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last - first > 1023 {
            return Err(format!("{part} is no range of cores"));
        }
        list.extend(first..=last);
    }
    match (1..list.len()).find(|&at| list[..at].contains(&list[at])) {
        Some(twice) => Err(format!("core {} stands twice in {text}", list[twice])),
        None => Ok(Cores::These(list)),
    }
}

impl Cores {
    /// The cores to run on, and what is to be said of the choice.
    fn choose(told: Option<&Cores>) -> anyhow::Result<(Vec<usize>, String)> {
        let usable = topology::usable_cores()?;
        let quota = topology::quota_cores();
        let chosen = match told {
            None => usable.clone(),
            Some(Cores::These(list)) => list.clone(),
            Some(Cores::Count(count)) => {
                let allowed = topology::allowed_cores()?;
                anyhow::ensure!(
                    (1..=allowed.len()).contains(count),
                    "--cores {count}: this process may use {} cores: {allowed:?} (one of them alone is N-N)",
                    allowed.len()
                );
                allowed[..*count].to_vec()
            }
        };
        let mut words = format!("cores {chosen:?}, a shard on each");
        if let Some(quota) = quota {
            words.push_str(&format!("; the CPU quota is {quota} cores"));
            if chosen.len() as f64 > quota {
                words.push_str(": shards will be throttled");
            }
        }
        Ok((chosen, words))
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("\"{text}\" is not HOST:PORT"))?;
    let port = port.parse().map_err(|_| format!("\"{port}\" is not a port"))?;
    if host.is_empty() || port == 0 {
        return Err(format!("\"{text}\": clients need a host and a port to come to"));
    }
    Ok((host.trim_matches(['[', ']']).to_owned(), port))
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    // Blocked before any thread starts, so that all of them leave these to this one.
    let mut stop_signals = SigSet::empty();
    stop_signals.add(Signal::SIGTERM);
    stop_signals.add(Signal::SIGINT);
    stop_signals.thread_block().context("blocking signals")?;
    let Command::Serve(serve) = Cli::parse().command;
    run(&serve, &stop_signals)
}

fn run(told: &Serve, stop_signals: &SigSet) -> anyhow::Result<()> {
    anyhow::ensure!(told.partitions > 0, "--partitions {}: at least one is needed", told.partitions);
    anyhow::ensure!(
        told.advertise.is_some() || !told.listen.ip().is_unspecified(),
        "--listen {}: no address that clients could come to: --advertise HOST:PORT is needed",
        told.listen
    );
    anyhow::ensure!(
        told.ingress.checks_payload() || told.trusted_producers,
        "--ingress {}: it checks no checksum of what producers send; if all of them send only what was checked before, \
         say so with --trusted-producers",
        told.ingress
    );
    let mut config = EngineConfig::new(&told.data_dir);
    let (cores, chosen) = Cores::choose(told.cores.as_ref())?;
    config.cores = Some(cores);
    config.shard.ingress = told.ingress;
    config.shard.trusted_producers = told.trusted_producers;
    config.shard.egress = told.egress;
    config.shard.node_id = told.node_id;
    config.shard.verify = told.verify;
    config.shard.sleep_after = std::time::Duration::from_millis(told.sleep_after_ms);
    config.shard.commit = told.commit;
    config.shard.journal.batch_bytes_max = told.journal_batch_bytes;
    config.shard.journal.round_bytes_max = told.journal_round_bytes;
    let commit_words = commit_words(&config.shard);
    // Through the names that topics use, so that nonsense is refused in the same words.
    let settings = [
        ("ringlog.ack", told.ack.to_string()),
        ("max.message.bytes", told.message_bytes_max.to_string()),
        ("segment.bytes", told.segment_bytes.to_string()),
        ("retention.ms", told.retention_ms.to_string()),
        ("retention.bytes", told.retention_bytes.to_string()),
    ];
    let pairs = settings.iter().map(|(name, value)| (*name, value.as_str()));
    config.shard.topic_defaults =
        TopicConfig::from_pairs(&TopicConfig::default(), pairs).map_err(anyhow::Error::msg)?;
    let engine = Engine::open(config).with_context(|| format!("opening {}", told.data_dir.display()))?;
    println!("{}", engine.capabilities());
    println!("{chosen}");
    let (flushes, lacks) =
        block_on(engine.on_shard(|shard| async move { (shard.flushes().clone(), shard.ingress_lacks()) }))?;
    println!(
        "data in {}: ingress {}{}, egress {}, appends wait for {}",
        told.data_dir.display(),
        told.ingress,
        lacks.map_or(String::new(), |what| format!(" (through the page cache: no {what} here)")),
        told.egress,
        told.ack
    );
    println!("{commit_words}");
    println!(
        "a flush {}",
        match flushes {
            Flushes::Reach => "reaches the disk: durable survives power loss".to_owned(),
            Flushes::ReachBut(words) => format!("is believed to reach the disk, but {words}"),
            Flushes::DoNotReach(words) => format!("is worth nothing here ({words}): durable is refused"),
        }
    );

    let mut broker = BrokerConfig::new(told.listen);
    broker.advertise.clone_from(&told.advertise);
    broker.default_partitions = told.partitions;
    broker.auto_create_topics = told.auto_create_topics;
    let serving = match start(&engine, broker) {
        Ok(serving) => serving,
        Err(error) => {
            engine.close()?;
            return Err(error.into());
        }
    };
    println!("listening on {}", serving.address());
    std::io::stdout().flush()?;
    let signal = stop_signals.wait().context("waiting for a signal")?;
    tracing::info!("{signal}: answering what is under way, then stopping");
    let cores = engine.cores().to_vec();
    let counters = block_on(engine.counters())?;
    engine.close().context("stopping cleanly")?;
    let spread: Vec<String> = std::iter::zip(&cores, serving.ended())
        .map(|(core, served)| match served {
            Some(served) => format!("core {core}: {}", served.accepted),
            None => format!("core {core}: dropped before it ended"),
        })
        .collect();
    println!("connections: {}", spread.join(", "));
    let crossed: Vec<String> = std::iter::zip(&cores, &counters)
        .map(|(core, counted)| {
            let lanes = counted.shard.lanes;
            format!(
                "core {core}: {} asked of others, {} for others, {} waited for room (longest {} us)",
                lanes.calls_out,
                lanes.calls_in,
                lanes.waits,
                lanes.longest_wait_nanos / 1000
            )
        })
        .collect();
    for (core, journal) in cores.iter().zip(counters.iter().map(|counted| counted.shard.journal)) {
        if journal.rounds + journal.full_rounds > 0 {
            println!(
                "journal of core {core}: {} rounds of {} frames, {} MiB; {} times much of a partition went to its segment, \
                 {} times no file was free; {} files used again",
                journal.rounds,
                journal.frames,
                journal.bytes >> 20,
                journal.direct_rounds,
                journal.full_rounds,
                journal.recycled_files
            );
        }
    }
    if cores.len() > 1 {
        println!("requests between cores: {}", crossed.join("; "));
    }
    Ok(())
}

/// Where what must be durable is safe first.
fn commit_words(config: &ShardConfig) -> String {
    match config.commit {
        Commit::Device => {
            "durable appends are committed in their segments, one flush of the file system for all that wait"
                .to_owned()
        }
        Commit::Files => "durable appends are committed in their segments, one flush for each".to_owned(),
        Commit::Journal if !config.ingress.is_direct() => format!(
            "durable appends are committed in their segments, one flush for each: ingress {} keeps nothing in memory that a \
             journal could be destaged from",
            config.ingress
        ),
        Commit::Journal => format!(
            "durable appends are committed in a journal, one flush for all: batches of up to {} KiB, up to {} KiB of a \
             partition at a time; others in their segments",
            config.journal.batch_bytes_max >> 10,
            config.journal.round_bytes_max >> 10
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_something_to_come_to() {
        assert_eq!(host_and_port("[::1]:9092"), Ok(("::1".to_owned(), 9092)));
        for text in [":9092", "host:0", "host", "host:x"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_a_list_or_a_count_and_nonsense_is_refused_by_name() {
        assert_eq!(cores("3-3"), Ok(Cores::These(vec![3])));
        assert_eq!(cores("0,2-4"), Ok(Cores::These(vec![0, 2, 3, 4])));
        assert_eq!(cores("2"), Ok(Cores::Count(2)));
        for (text, named) in [("x", "\"x\""), ("3-1", "3-1"), ("1,0-2", "core 1"), ("", "\"\"")] {
            assert!(cores(text).unwrap_err().contains(named), "{text}");
        }
        assert!(Cores::choose(Some(&Cores::Count(0))).unwrap_err().to_string().contains("cores 0"));
    }
}
