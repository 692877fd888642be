//! The command line: what to run, and what to make of a run that was kept.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ringlog_harness::arms::{Arms, ServeArm, arms, serve_arm};
use ringlog_harness::compare::{Compare, compare};
use ringlog_harness::copies::{self, Copies, Guest, copies};
use ringlog_harness::doctor::{Doctor, doctor};
use ringlog_harness::floor::{ServeFloor, serve_floor};
use ringlog_harness::powercut::{self, PowerCut, powercut};
use ringlog_harness::record::{RunRecord, write_whole};
use ringlog_harness::target::{ServeChild, serve_child};
use ringlog_harness::versus::{Versus, Warm, versus, warm};
use ringlog_harness::{guide, report};

/// Loads, zero-copy strategies compared, copies counted, reports.
#[derive(Parser)]
#[command(name = "ringlog-harness", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare ways of moving bytes on this machine
    Compare(Box<Compare>),
    /// Compare our ring with blocking threads, epoll and a runtime, and with itself set up otherwise
    Arms(Box<Arms>),
    /// Measure two brokers on one workload: ours, Apache Kafka, any that speaks its protocol
    Versus(Box<Versus>),
    /// Put a broker under full load for a while, so that it is not measured cold
    Warm(Warm),
    /// Say what this host offers and refuses, what the engine will choose, and what would improve it
    Doctor(Doctor),
    /// Make the page of a kept run again, from its run.json
    Report {
        /// The run's directory
        directory: PathBuf,
    },
    /// Count how often the CPU copies a byte on each way, by three accounts
    Copies(Copies),
    /// Cut the power of a guest with a broker in it, again and again, and look for what was promised
    Powercut(PowerCut),
    /// List every strategy with the path of a byte and the copies it declares
    Strategies,
    #[command(hide = true)]
    CopiesGuest(Guest),
    #[command(hide = true)]
    CopiesPeer,
    #[command(hide = true)]
    PowercutGuest(powercut::Guest),
    #[command(hide = true)]
    ServeChild(ServeChild),
    #[command(hide = true)]
    ServeFloor(ServeFloor),
    #[command(hide = true)]
    ServeArm(ServeArm),
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Compare(told) => match compare(*told)? {
            true => Ok(ExitCode::SUCCESS),
            false => Ok(ExitCode::FAILURE),
        },
        Command::Arms(told) => match arms(&told)? {
            true => Ok(ExitCode::SUCCESS),
            false => Ok(ExitCode::FAILURE),
        },
        Command::Versus(told) => match versus(&told)? {
            true => Ok(ExitCode::SUCCESS),
            false => Ok(ExitCode::FAILURE),
        },
        Command::Warm(told) => match warm(&told)? {
            true => Ok(ExitCode::SUCCESS),
            false => Ok(ExitCode::FAILURE),
        },
        Command::Doctor(told) => match doctor(&told)? {
            true => Ok(ExitCode::SUCCESS),
            false => Ok(ExitCode::FAILURE),
        },
        Command::Report { directory } => {
            let page = directory.join("report.html");
            write_whole(&page, report::render(&RunRecord::load(&directory)?)?.as_bytes())?;
            println!("{}", page.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Copies(told) => copies(&told),
        Command::Powercut(told) => powercut(&told),
        Command::Strategies => {
            print!("{}", guide::list());
            Ok(ExitCode::SUCCESS)
        }
        Command::CopiesGuest(told) => copies::guest(&told).map(|()| ExitCode::SUCCESS),
        Command::CopiesPeer => copies::peer().map(|()| ExitCode::SUCCESS),
        Command::PowercutGuest(told) => powercut::guest(&told).map(|()| ExitCode::SUCCESS),
        Command::ServeChild(told) => serve_child(&told).map(|()| ExitCode::SUCCESS),
        Command::ServeFloor(told) => serve_floor(&told).map(|()| ExitCode::SUCCESS),
        Command::ServeArm(told) => serve_arm(&told).map(|()| ExitCode::SUCCESS),
    }
}
