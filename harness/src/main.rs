//! The command line: what to run, and what to make of a run that was kept.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ringlog_harness::record::{RunRecord, write_whole};
use ringlog_harness::report;

/// Loads, zero-copy strategies compared, copies counted, reports.
#[derive(Parser)]
#[command(name = "ringlog-harness", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the page of a kept run again, from its run.json
    Report {
        /// The run's directory
        directory: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Report { directory } => {
            let page = directory.join("report.html");
            write_whole(&page, report::render(&RunRecord::load(&directory)?)?.as_bytes())?;
            println!("{}", page.display());
            Ok(())
        }
    }
}
