//! `ringlog-broker serve`: the log server as a program.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use ringlog::{Ack, Egress, Engine, EngineConfig, Ingress};
use ringlog_broker::{BrokerConfig, bind, serve};

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
    /// How batches get to disk: buffered, copy.
    #[arg(long, default_value_t = Ingress::Copy)]
    ingress: Ingress,
    /// How batches get to sockets: copy, sendfile, tail.
    #[arg(long, default_value_t = Egress::Tail)]
    egress: Egress,
    /// What an append waits for unless its topic says otherwise: memory, written, durable.
    #[arg(long, default_value_t = Ack::Durable)]
    ack: Ack,
    /// Partitions of topics that are created without a number.
    #[arg(long, default_value_t = 1)]
    partitions: i32,
    /// Whether asking for a topic creates it.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    auto_create_topics: bool,
    /// The largest batch.
    #[arg(long, default_value_t = 1_048_588)]
    message_bytes_max: u32,
    /// This node's number in a new data directory.
    #[arg(long, default_value_t = 1)]
    node_id: i32,
    /// The core to run on; the first allowed one if not given.
    #[arg(long)]
    core: Option<usize>,
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("\"{text}\" is not HOST:PORT"))?;
    let port = port.parse().map_err(|_| format!("\"{port}\" is not a port"))?;
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
    let mut config = EngineConfig::new(&told.data_dir);
    config.core = told.core;
    config.shard.ingress = told.ingress;
    config.shard.egress = told.egress;
    config.shard.node_id = told.node_id;
    config.shard.topic_defaults.ack = told.ack;
    config.shard.topic_defaults.log.batch_bytes_max = told.message_bytes_max;
    let engine = Engine::open(config).with_context(|| format!("opening {}", told.data_dir.display()))?;
    println!("{}", engine.capabilities());
    println!(
        "data in {}: ingress {}, egress {}, appends wait for {}",
        told.data_dir.display(),
        told.ingress,
        told.egress,
        told.ack
    );

    let mut broker = BrokerConfig::new(told.listen);
    broker.advertise.clone_from(&told.advertise);
    broker.default_partitions = told.partitions;
    broker.auto_create_topics = told.auto_create_topics;
    let (tell, told_address) = mpsc::sync_channel(1);
    engine.serve_on_each_shard(move |shard| async move {
        match bind(&shard, broker) {
            Ok(bound) => {
                let _ = tell.send(Ok(bound.address()));
                serve(bound).await;
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        }
    })?;
    let listening = told_address.recv().context("the shard ended before it listened")?;
    match listening {
        Ok(address) => {
            println!("listening on {address}");
            std::io::stdout().flush()?;
        }
        Err(error) => {
            engine.close()?;
            return Err(error.into());
        }
    }
    let signal = stop_signals.wait().context("waiting for a signal")?;
    tracing::info!("{signal}: answering what is under way, then stopping");
    engine.close().context("stopping cleanly")?;
    Ok(())
}
