//! The server under test: this program again, as a child process pinned to the server's core.
//!
//! They talk in lines: the child says where it listens, answers `counters` with a line of JSON, and stops cleanly
//! when its input ends. A process of its own, so that its CPU and memory can be told from the load's.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, anyhow};
use ringlog::{Ack, Egress, Engine, EngineConfig, EngineCounters, Ingress, block_on};
use ringlog_broker::{BrokerConfig, bind, serve};

use crate::spec::{self, Pair};

/// What the child is told.
#[derive(clap::Args, Debug)]
pub struct ServeChild {
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    ingress: Ingress,
    #[arg(long)]
    egress: Egress,
    #[arg(long)]
    ack: Ack,
    #[arg(long)]
    core: usize,
    #[arg(long)]
    batch_bytes_max: u32,
}

/// The child's side.
pub fn serve_child(told: ServeChild) -> Result<()> {
    let mut config = EngineConfig::new(&told.data_dir);
    config.core = Some(told.core);
    config.shard.ingress = told.ingress;
    config.shard.egress = told.egress;
    config.shard.topic_defaults.ack = told.ack;
    config.shard.topic_defaults.log.batch_bytes_max = told.batch_bytes_max;
    let engine = Engine::open(config)?;
    let (tell, address) = mpsc::sync_channel(1);
    engine.serve_on_each_shard(move |shard| async move {
        let bound = bind(&shard, BrokerConfig::new(SocketAddr::from(([127, 0, 0, 1], 0))));
        let _ = tell.send(bound.as_ref().map(|b| b.address()).map_err(ToString::to_string));
        if let Ok(bound) = bound {
            serve(bound).await;
        }
    })?;
    let address = address.recv().context("the shard ended")?.map_err(|why| anyhow!(why))?;
    say(&format!("listening on {address}"))?;
    for line in std::io::stdin().lock().lines() {
        if line?.trim() == "counters" {
            let counters = block_on(engine.counters())?;
            say(&as_json(&counters).to_string())?;
        }
    }
    engine.close()?;
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn as_json(counters: &EngineCounters) -> serde_json::Value {
    let EngineCounters { shard, egress, stages } = counters;
    let egress: serde_json::Map<String, serde_json::Value> = egress
        .iter()
        .map(|(name, c)| {
            let value = serde_json::json!({
                "bytes": c.bytes, "fallback_bytes": c.fallback_bytes, "sends": c.sends, "cold_reads": c.cold_reads,
            });
            (name.to_string(), value)
        })
        .collect();
    let stages: serde_json::Map<String, serde_json::Value> = stages
        .iter()
        .map(|s| {
            let value =
                serde_json::json!({"count": s.count, "p50_ns": s.p50, "p99_ns": s.p99, "max_ns": s.max});
            (s.name.to_owned(), value)
        })
        .collect();
    serde_json::json!({
        "ring": {
            "system_calls": shard.ring.system_calls, "enters": shard.ring.enters,
            "submissions": shard.ring.submissions, "writes": shard.ring.writes,
            "write_bytes": shard.ring.write_bytes, "syncs": shard.ring.syncs,
            "longest_tick_ns": shard.ring.longest_tick_nanos,
        },
        "arena": {
            "mapped_bytes": shard.arena.mapped_bytes, "leased_bytes": shard.arena.leased_bytes,
            "registered_bytes": shard.arena.registered_bytes,
        },
        "tail_cache_bytes": shard.tail_cache_bytes,
        "ingress_bytes": shard.ingress_bytes,
        "ingress_copied_bytes": shard.ingress_copied_bytes,
        "egress": egress,
        "stages": stages,
    })
}

/// The parent's side: a server that is running.
pub struct Target {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Target {
    /// Starts a server for one row on an empty directory.
    pub fn start(
        row: &Pair,
        ack: spec::Ack,
        directory: &Path,
        core: usize,
        batch_bytes_max: usize,
    ) -> Result<Target> {
        let program = std::env::current_exe().context("finding this program")?;
        let ack = match ack {
            spec::Ack::Memory => Ack::Memory,
            spec::Ack::Written => Ack::Written,
            spec::Ack::Durable => Ack::Durable,
        };
        let mut child = Command::new(program)
            .arg("serve-child")
            .arg("--data-dir")
            .arg(directory)
            .args(["--ingress", &row.ingress, "--egress", &row.egress, "--ack", &ack.to_string()])
            .args(["--core", &core.to_string(), "--batch-bytes-max", &batch_bytes_max.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("the server has no output")?);
        let mut target = Target { child, input, output, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let line = target.read_line()?;
        let address =
            line.strip_prefix("listening on ").ok_or_else(|| anyhow!("the server said \"{line}\""))?;
        target.address = address.parse().with_context(|| format!("\"{address}\" is no address"))?;
        Ok(target)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Its own counters, now.
    pub fn counters(&mut self) -> Result<serde_json::Value> {
        let input = self.input.as_mut().context("the server is stopping")?;
        writeln!(input, "counters")
            .context("the server does not listen any more; its last words are above")?;
        Ok(serde_json::from_str(&self.read_line()?)?)
    }

    /// Stops it cleanly.
    pub fn stop(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the server ended with {status}; its last words are above");
        Ok(())
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line)?;
        if read == 0 {
            let status = self.child.wait()?;
            return Err(anyhow!("the server ended with {status}; its last words are above"));
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Target {
    /// A run that is given up leaves no server behind.
    fn drop(&mut self) {
        if self.input.take().is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
