//! The harness: a load in the Kafka protocol, ways of moving bytes compared on it, a record of the run, a page.
//!
//! ```text
//! flags -> RunSpec -> Plan (cells) -> load (producers, consumers) -> recorder, account, cpu -> RunRecord -> report
//! ```
//!
//! Everything random comes from one printed seed. Nothing in these modules opens a socket: the load does.

// What to run.
pub mod arrivals;
pub mod keys;
pub mod schedule;
pub mod spec;
pub mod units;

// What goes over the wire, and what must come back.
pub mod batch;
pub mod payload;
pub mod sequences;
pub mod verify;

// What is measured.
pub mod cpu;
pub mod doctor;
pub mod environment;
pub mod recorder;
pub mod residency;

// What is kept and shown.
pub mod comparison;
pub mod guide;
pub mod intervals;
pub mod paths;
pub mod picture;
pub mod plot;
pub mod progress;
pub mod record;
pub mod report;
pub mod statistics;
pub mod summary;
pub mod tables;

// The load, and what it is put on.
pub mod admin;
pub mod arms;
pub mod cell;
pub mod client;
pub mod compare;
pub mod consumers;
pub mod copies;
pub mod floor;
pub mod guest;
pub mod handicap;
pub mod powercut;
pub mod producers;
pub mod target;
pub mod versus;
pub mod waiting;
