//! Producers that go on until the power is cut, and remember every answer.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use super::client::Client;
use super::judge::{Account, Acknowledged, Values, Violations};
use crate::payload::Head;

/// Producers of a load.
pub const PRODUCERS: u32 = 64;
/// Partitions of its topic.
pub const PARTITIONS: u32 = 8;
/// The topic.
pub const TOPIC: &str = "cut";
/// The largest batch.
const BATCH_BYTES_MAX: usize = 400 << 10;
/// Requests in flight of one producer, at most.
const WINDOW_MAX: u32 = 4;
/// Longer than any wait for an answer of a guest that lives.
const PATIENCE: Duration = Duration::from_secs(120);

/// A load under way.
pub struct Load {
    producers: Vec<(TcpStream, JoinHandle<Produced>)>,
}

/// What one producer did.
struct Produced {
    producer: u32,
    ends: Vec<u64>,
    acknowledged: Vec<Acknowledged>,
    refused: BTreeMap<&'static str, u64>,
}

/// What all of them did.
#[derive(Default)]
pub struct Loaded {
    /// Batches that the broker promised.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Batches that it refused, by the name of the error.
    pub refused: BTreeMap<&'static str, u64>,
}

struct Producer {
    client: Client,
    values: Arc<Values>,
    random: fastrand::Rng,
    in_flight: VecDeque<(u32, Range<u64>)>,
    produced: Produced,
}

impl Load {
    /// Starts all producers where `account` says that each goes on; `ready` is called when all of them are connected and
    /// none has sent anything.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub fn start(
        address: SocketAddr,
        account: &Account,
        values: Values,
        seed: u64,
        ready: impl FnOnce(),
    ) -> Result<Load> {
        let values = Arc::new(values);
        let mut producers = Vec::new();
        let clients = (0..PRODUCERS).map(|_| Client::open(address, TOPIC, PATIENCE));
        let clients: Vec<Client> = clients.collect::<Result<_>>()?;
        ready();
        for (producer, client) in (0..).zip(clients) {
            let socket = client.socket()?;
            let ends = account.sent(producer);
            let produced = Produced { producer, ends, acknowledged: Vec::new(), refused: BTreeMap::new() };
            let random = fastrand::Rng::with_seed(seed ^ u64::from(producer) << 32);
            let producer =
                Producer { client, values: values.clone(), random, in_flight: VecDeque::new(), produced };
            producers.push((socket, thread::spawn(move || producer.run())));
        }
        Ok(Load { producers })
    }

    /// Ends all producers and hands their account over.
    pub fn end(self, account: &mut Account, violations: &mut Violations) -> Loaded {
        for (socket, _) in &self.producers {
            // The other end may have closed it.
            let _ = socket.shutdown(Shutdown::Both);
        }
        let mut loaded = Loaded::default();
        for (_, thread) in self.producers {
            let produced = thread.join().expect("a producer does not panic");
            account.note_sent(produced.producer, &produced.ends);
            for told in &produced.acknowledged {
                loaded.batches += 1;
                loaded.records += told.sequences.end - told.sequences.start;
                account.acknowledge(told, violations);
            }
            for (error, times) in produced.refused {
                *loaded.refused.entry(error).or_default() += times;
            }
        }
        loaded
    }
}

impl Producer {
    fn run(mut self) -> Produced {
        let window = 1 + self.produced.producer % WINDOW_MAX;
        let mut buffer = vec![0; BATCH_BYTES_MAX];
        // A connection that breaks is the end that every load comes to.
        while self.step(window, &mut buffer).is_ok() {}
        self.produced
    }

    fn step(&mut self, window: u32, buffer: &mut [u8]) -> Result<()> {
        while self.in_flight.len() < window as usize {
            self.send(buffer)?;
        }
        let answer = self.client.receive_offset()?;
        let (partition, sequences) = self.in_flight.pop_front().expect("a window is not empty");
        match answer {
            Ok(base_offset) => {
                let producer = self.produced.producer;
                let told = Acknowledged { partition, base_offset, producer, sequences };
                self.produced.acknowledged.push(told);
            }
            Err(error) => *self.produced.refused.entry(error.name()).or_default() += 1,
        }
        Ok(())
    }

    /// Most batches are small, a few are larger than what a journal takes.
    fn send(&mut self, buffer: &mut [u8]) -> Result<()> {
        let (size, records) = match self.random.u8(0..20) {
            0 => (3, self.random.u64(1..=22)),
            1..=4 => (2, self.random.u64(1..=20)),
            _ => (self.random.usize(0..2), self.random.u64(1..=8)),
        };
        let partition = self.random.u32(0..PARTITIONS);
        let first = self.produced.ends[partition as usize];
        let head =
            Head { producer: self.produced.producer, partition, sequence: first, intended_ns: 0, run: 0 };
        let (bytes, built) = self.values.build(buffer, size, records, head);
        // Sent, as far as anyone can know, from here on.
        self.produced.ends[partition as usize] = first + built;
        self.in_flight.push_back((partition, first..first + built));
        self.client.send_batch(partition, &buffer[..bytes])
    }
}
