//! One cell: producers and consumers put on a broker, watched while measured, held to account at the end.
//!
//! ```text
//! tail:      topic | warm-up | measured ............ | answers | consumers reach the end | reconcile
//! produce:   topic | warm-up | measured ............ | answers | consumers read it all   | reconcile
//! catch-up:  topic | fill | to disk, out of the cache | measured: consumers reach the end | reconcile
//! mixed:     the same, and a second topic that producers write and consumers follow meanwhile
//! ```
//!
//! A floor has no topics, keeps nothing of what is produced to it, and catches up on files made beforehand.
//!
//! All of it runs as tasks of one ring on one thread. The first connection that fails ends the cell.

use std::cell::{Cell as Slot, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use ringlog::sys::{Moment, Ring};
use ringlog::transfer::join;

use crate::arrivals::{Lateness, OpenLoop};
use crate::client::Connection;
use crate::consumers::{Consumer, ConsumerTerms};
use crate::cpu::{MachineSample, ProcessSample};
use crate::floor::stored::{MADE_TOPIC, Made};
use crate::keys::Keys;
use crate::payload::Payload;
use crate::producers::{Produced, ProducerTerms, produce};
use crate::progress::Progress;
use crate::record::CellRecord;
use crate::residency::{Residency, ResidencyPair, drop_logs_from_cache, each_log};
use crate::schedule::{Cell, WARM_UP_SECONDS};
use crate::spec::{Load, READ_BACK_AT_ONCE, RunSpec};
use crate::target::Target;
use crate::units::Pace;
use crate::verify::Sent;
use crate::waiting::{Signal, Started, start, unless, within};

/// How often the running load is looked at.
const STEP: Duration = Duration::from_millis(100);
/// How long answers, or the last records, may take once nothing more is sent.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);
/// Segments of topics that are read whole afterwards.
const CATCH_UP_SEGMENT_BYTES: u64 = 4 << 20;
/// How long filling and reading a log may take.
const WHOLE_LOG_PATIENCE: Duration = Duration::from_secs(600);

/// A cell about to run, and all it needs.
pub struct CellRun {
    /// The ring that everything runs on.
    pub ring: Ring,
    /// What the user asked for.
    pub spec: Rc<RunSpec>,
    /// The seed of the run.
    pub seed: u64,
    /// Seconds to measure.
    pub seconds: f64,
    /// The values.
    pub payload: Rc<Payload>,
    /// What to run.
    pub cell: Cell,
    /// The broker.
    pub address: SocketAddr,
    /// Its process, where it is ours.
    pub server: Option<i32>,
    /// Where its log lies, where that is known.
    pub data_dir: Option<PathBuf>,
    /// The broker again, to be told things.
    pub target: Rc<RefCell<Target>>,
    /// What there is to catch up on without filling: a floor's files.
    pub made: Option<Rc<Made>>,
    /// Where progress is shown.
    pub progress: Rc<RefCell<Progress<io::Stderr>>>,
    /// What is not the same for all who run cells.
    pub terms: CellTerms,
}

/// What is not the same for all who run cells.
#[derive(Clone, PartialEq, Debug)]
pub struct CellTerms {
    /// Before the measured time, at the cell's own pace.
    pub warm_up_seconds: f64,
    /// The topic, where it is not named after the cell's number alone: on somebody's broker that may be another's.
    pub topic: Option<String>,
    /// Whether latencies of a closed loop are kept: what a request takes while every window is full.
    pub latencies_at_saturation: bool,
}

impl Default for CellTerms {
    fn default() -> CellTerms {
        CellTerms { warm_up_seconds: WARM_UP_SECONDS, topic: None, latencies_at_saturation: false }
    }
}

/// What was read when the measured time began or ended.
struct Sample {
    at_ns: u64,
    server: Option<ProcessSample>,
    client: ProcessSample,
    machine: MachineSample,
}

/// The first error of any connection ends the cell.
#[derive(Clone, Default)]
struct Failure {
    happened: Signal,
    error: Rc<RefCell<Option<Error>>>,
}

/// What there is to catch up on.
struct Filled {
    topic: String,
    /// The number that its records carry.
    run: u32,
    produced: Rc<Vec<Produced>>,
    /// Bytes of batches.
    bytes: u64,
}

/// The consumers of a cell.
struct Readers {
    consumers: Vec<Rc<Consumer>>,
    terms: Rc<ConsumerTerms>,
}

impl CellRun {
    /// Runs the cell on the ring's thread until it is over.
    ///
    /// # Errors
    /// When a connection breaks, the broker stops answering, or its files cannot be dropped from the cache.
    pub fn run(self) -> Result<CellRecord> {
        let ring = self.ring.clone();
        let failure = Failure::default();
        let watched = failure.clone();
        ring.run(async move {
            let work = async {
                match self.cell.load {
                    Load::Tail | Load::Produce => self.produce(&failure).await,
                    Load::CatchUp | Load::FanOut => self.catch_up(&failure).await,
                    Load::Mixed => self.mixed(&failure).await,
                }
            };
            match unless(&watched.happened, work).await {
                Some(result) => result,
                None => Err(watched.error.take().unwrap_or_else(|| Error::msg("a connection failed"))),
            }
        })
    }

    /// Producers, with consumers at the tail or after the measured time.
    async fn produce(&self, failure: &Failure) -> Result<CellRecord> {
        let topic = self.terms.topic.clone().unwrap_or_else(|| topic_of(&self.cell));
        self.create_topic(&topic).await?;
        let begin_ns = self.ring.now().0 + (self.terms.warm_up_seconds * 1e9) as u64;
        let measured = begin_ns..begin_ns + (self.seconds * 1e9) as u64;
        let at_tail = self.cell.load == Load::Tail;
        let tail_readers = at_tail.then(|| self.start_followers(&topic, measured.clone(), failure));
        let (terms, producing) = self.start_producers(&topic, measured.clone(), measured.end, None, failure);

        self.ring.sleep_until(Moment(measured.start)).await;
        let before = self.sample()?;
        let mut record = CellRecord::empty(self.cell.clone());
        let acknowledged = || terms.acknowledged.get();
        record.bytes_by_step =
            self.watch("measuring", acknowledged, || self.ring.now().0 >= measured.end).await;
        record.sample_seconds = STEP.as_secs_f64();
        let after = self.sample()?;
        self.note_use(&mut record, &before, &after);
        record.seconds = self.seconds;

        let produced = self.last_answers(producing).await?;
        self.note_produced(&mut record, &produced);
        let ends = end_offsets(&produced);
        match tail_readers {
            Some(readers) => {
                self.finish_reading(&readers, &ends, DRAIN_PATIENCE, &mut record).await;
                readers.close(&produced, &mut record);
            }
            // Nothing can be read back from a floor: it has no log.
            None if self.cell.row.is_floor() => {}
            None => {
                let partitions = self.spec.partitions;
                for first in (0..partitions).step_by(READ_BACK_AT_ONCE as usize) {
                    let some = first..partitions.min(first + READ_BACK_AT_ONCE);
                    let terms = self.consumer_terms(&topic, 0..0);
                    let readers = self.start_consumers(terms, self.cell.index, some, 1, failure);
                    self.finish_reading(&readers, &ends, WHOLE_LOG_PATIENCE, &mut record).await;
                    readers.close(&produced, &mut record);
                }
            }
        }
        Ok(record)
    }

    async fn catch_up(&self, failure: &Failure) -> Result<CellRecord> {
        let filled = self.fill(failure).await?;
        let mut record = self.begin_record(&filled.produced);
        let cached = self.make_cold(&filled)?;

        let before = self.sample()?;
        let readers = self.start_behind(&filled, before.at_ns, failure);
        record.bytes_by_step = self.finish_behind(&readers, &filled, &mut record).await;
        let after = self.sample()?;
        self.note_use(&mut record, &before, &after);
        record.residency = self.residency_since(cached, &filled)?;
        readers.close(&filled.produced, &mut record);
        Ok(record)
    }

    /// Those behind are what it lasts as long as; producers and who follows them go on meanwhile.
    async fn mixed(&self, failure: &Failure) -> Result<CellRecord> {
        let filled = self.fill(failure).await?;
        let mut record = self.begin_record(&filled.produced);
        let cached = self.make_cold(&filled)?;
        let topic = followed_topic_of(&self.cell);
        self.create_topic(&topic).await?;
        let begin_ns = self.ring.now().0 + (WARM_UP_SECONDS * 1e9) as u64;
        let followers = self.start_followers(&topic, begin_ns..u64::MAX, failure);
        let (terms, producing) = self.start_producers(&topic, begin_ns..u64::MAX, u64::MAX, None, failure);
        self.ring.sleep_until(Moment(begin_ns)).await;

        let before = self.sample()?;
        let followed = followers.terms.received.get();
        let readers = self.start_behind(&filled, before.at_ns, failure);
        record.bytes_by_step = self.finish_behind(&readers, &filled, &mut record).await;
        let after = self.sample()?;
        let followed = followers.terms.received.get() - followed;
        terms.until_ns.set(after.at_ns);
        self.note_use(&mut record, &before, &after);
        record.residency = self.residency_since(cached, &filled)?;

        let produced = self.last_answers(producing).await?;
        self.note_produced(&mut record, &produced);
        self.finish_reading(&followers, &end_offsets(&produced), DRAIN_PATIENCE, &mut record).await;
        readers.close(&filled.produced, &mut record);
        let behind = record.consumed_bytes;
        followers.close(&produced, &mut record);
        record.consumed_bytes = behind + followed;
        Ok(record)
    }

    /// What those behind will read: made beforehand, or written now.
    async fn fill(&self, failure: &Failure) -> Result<Filled> {
        if let Some(made) = &self.made {
            let (topic, run, bytes) = (MADE_TOPIC.to_owned(), made.run, made.bytes);
            return Ok(Filled { topic, run, bytes, produced: made.produced.clone() });
        }
        let topic = topic_of(&self.cell);
        self.create_topic(&topic).await?;
        let budget = Some(self.spec.catch_up_bytes as u64);
        let (terms, producing) = self.start_producers(&topic, 0..0, u64::MAX, budget, failure);
        let done = Slot::new(false);
        let filling = async {
            let produced = within(&self.ring, WHOLE_LOG_PATIENCE, producing).await;
            done.set(true);
            produced.with_context(|| format!("filling the log took more than {WHOLE_LOG_PATIENCE:?}"))
        };
        let watching = self.watch("filling", || terms.acknowledged.get(), || done.get());
        let (produced, _) = join(filling, watching).await;
        let (run, bytes) = (self.cell.index, terms.acknowledged.get());
        Ok(Filled { topic, run, bytes, produced: Rc::new(produced?) })
    }

    fn begin_record(&self, filled: &[Produced]) -> CellRecord {
        let mut record = CellRecord::empty(self.cell.clone());
        for (error, count) in filled.iter().flat_map(|produced| &produced.errors) {
            *record.errors.entry(error.clone()).or_default() += count;
        }
        record.sample_seconds = STEP.as_secs_f64();
        record
    }

    /// Out of the server's memory and out of the page cache; gives what is left there.
    fn make_cold(&self, filled: &Filled) -> Result<Option<Residency>> {
        self.target.borrow_mut().forget_tail()?;
        for directory in self.directories(&filled.topic)? {
            drop_logs_from_cache(&directory).context("dropping the log from the page cache")?;
        }
        self.residency(filled)
    }

    fn residency_since(&self, cached: Option<Residency>, filled: &Filled) -> Result<Option<ResidencyPair>> {
        let pair = cached.zip(self.residency(filled)?);
        Ok(pair.map(|(before, after)| ResidencyPair { before, after }))
    }

    fn start_behind(&self, filled: &Filled, from_ns: u64, failure: &Failure) -> Readers {
        let count = self.cell.load.behind(self.spec.consumers);
        let terms = self.consumer_terms(&filled.topic, from_ns..u64::MAX);
        self.start_consumers(terms, filled.run, 0..self.spec.partitions, count, failure)
    }

    async fn finish_behind(&self, readers: &Readers, filled: &Filled, record: &mut CellRecord) -> Vec<u64> {
        self.finish_reading(readers, &end_offsets(&filled.produced), WHOLE_LOG_PATIENCE, record).await
    }

    async fn last_answers(&self, producing: impl Future<Output = Vec<Produced>>) -> Result<Vec<Produced>> {
        within(&self.ring, DRAIN_PATIENCE, producing)
            .await
            .with_context(|| format!("answers to producers were missing after {DRAIN_PATIENCE:?}"))
    }

    async fn create_topic(&self, topic: &str) -> Result<()> {
        if self.cell.row.is_floor() {
            return Ok(());
        }
        let connection = Connection::open(&self.ring, self.address).await?;
        // Who catches up reads what was sealed long ago, but for the end of it.
        let segment_bytes = self.cell.load.catches_up().then_some(CATCH_UP_SEGMENT_BYTES);
        connection.create_topic(topic, self.spec.partitions, segment_bytes).await
    }

    fn start_followers(&self, topic: &str, measured: Range<u64>, failure: &Failure) -> Readers {
        let terms = ConsumerTerms { end_to_end: true, ..self.consumer_terms(topic, measured) };
        let count = self.cell.load.following(self.spec.consumers);
        self.start_consumers(terms, self.cell.index, 0..self.spec.partitions, count, failure)
    }

    fn consumer_terms(&self, topic: &str, measured: Range<u64>) -> ConsumerTerms {
        ConsumerTerms {
            address: self.address,
            topic: topic.to_owned(),
            batch_bytes: self.cell.batch_bytes,
            payload: self.payload.clone(),
            measured,
            end_to_end: false,
            received: Slot::new(0),
            stop: Signal::default(),
        }
    }

    /// `count` readers of each of these partitions, whose records carry the number `run`.
    fn start_consumers(
        &self,
        terms: ConsumerTerms,
        run: u32,
        partitions: Range<u32>,
        count: u32,
        failure: &Failure,
    ) -> Readers {
        let (terms, spec) = (Rc::new(terms), &self.spec);
        let partitions = partitions.flat_map(|partition| (0..count).map(move |_| partition));
        let consumers: Vec<Rc<Consumer>> =
            partitions.map(|partition| Rc::new(Consumer::new(partition, run, spec.producers))).collect();
        for consumer in &consumers {
            let consuming = consumer.clone().consume(self.ring.clone(), terms.clone());
            let partition = consumer.partition();
            let reading =
                async move { consuming.await.with_context(|| format!("consumer of partition {partition}")) };
            drop(failure.start(&self.ring, reading));
        }
        Readers { consumers, terms }
    }

    /// Starts all producers; the future gives what they did, once all are done.
    fn start_producers(
        &self,
        topic: &str,
        measured: Range<u64>,
        until_ns: u64,
        budget: Option<u64>,
        failure: &Failure,
    ) -> (Rc<ProducerTerms>, impl Future<Output = Vec<Produced>> + use<>) {
        let spec = &self.spec;
        let terms = Rc::new(ProducerTerms {
            address: self.address,
            topic: topic.to_owned(),
            run: self.cell.index,
            partitions: spec.partitions,
            window: spec.window,
            batch_bytes: self.cell.batch_bytes,
            measured,
            until_ns: Slot::new(until_ns),
            budget: budget.map(Slot::new),
            payload: self.payload.clone(),
            acknowledged: Slot::new(0),
        });
        let schedule = match self.cell.pace {
            Pace::Rate(rate) if budget.is_none() => Some(OpenLoop {
                spread: spec.arrivals,
                requests_per_second: self.payload.requests_per_second(
                    rate,
                    self.cell.batch_bytes,
                    spec.keys.count().is_some(),
                ),
                producers: spec.producers,
                start_ns: self.ring.now().0,
                seed: self.seed ^ u64::from(self.cell.index),
            }),
            _ => None,
        };
        let mut producing = Vec::new();
        for index in 0..spec.producers {
            let keys = Keys::new(spec.keys, spec.partitions, self.seed, index);
            let arrivals = schedule.map(|schedule| schedule.arrivals(index));
            let work = produce(self.ring.clone(), terms.clone(), index, keys, arrivals);
            let work = async move { work.await.with_context(|| format!("producer {index}")) };
            producing.push(failure.start(&self.ring, work));
        }
        let all = async move {
            let mut produced = Vec::new();
            for one in producing {
                // One that failed ends the cell by itself.
                produced.extend(one.result().await);
            }
            produced
        };
        (terms, all)
    }

    /// Looks at a counter of bytes every step until `done`; gives its growth in each.
    async fn watch(&self, stage: &str, bytes: impl Fn() -> u64, done: impl Fn() -> bool) -> Vec<u64> {
        let mut steps = Vec::new();
        let (mut last, mut next) = (bytes(), self.ring.now().plus(STEP));
        loop {
            // Short waits, so that the end is seen at once; steps are as long as they say.
            self.ring.sleep(Duration::from_millis(2)).await;
            let over = done();
            if over || self.ring.now() >= next {
                let now = bytes();
                steps.push(now - last);
                let rate = (now - last) as f64 / STEP.as_secs_f64();
                self.progress.borrow_mut().renew(&self.cell, stage, rate);
                (last, next) = (now, next.plus(STEP));
            }
            if over {
                return steps;
            }
        }
    }

    /// Waits until every consumer has reached the end of its partition, and stops them.
    async fn finish_reading(
        &self,
        readers: &Readers,
        ends: &BTreeMap<u32, i64>,
        patience: Duration,
        record: &mut CellRecord,
    ) -> Vec<u64> {
        let deadline = self.ring.now().plus(patience);
        let behind = |consumer: &&Rc<Consumer>| {
            consumer.next_offset() < ends.get(&consumer.partition()).copied().unwrap_or(0)
        };
        let received = || readers.terms.received.get();
        let done =
            || !readers.consumers.iter().any(|consumer| behind(&consumer)) || self.ring.now() > deadline;
        let steps = self.watch("reading", received, done).await;
        let late = readers.consumers.iter().filter(behind).count();
        if late > 0 {
            record.notes.push(format!("{late} consumers were not at the end after {patience:?}"));
        }
        readers.terms.stop.raise();
        steps
    }

    fn sample(&self) -> Result<Sample> {
        let us = i32::try_from(std::process::id())?;
        Ok(Sample {
            at_ns: self.ring.now().0,
            server: self.server.map(ProcessSample::take).transpose().context("the server's CPU time")?,
            client: ProcessSample::take(us).context("our own CPU time")?,
            machine: MachineSample::take().context("the cores' time")?,
        })
    }

    fn note_use(&self, record: &mut CellRecord, before: &Sample, after: &Sample) {
        if let (Some(before), Some(after)) = (&before.server, &after.server) {
            record.server = after.since(before);
        }
        record.seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
        record.client = after.client.since(&before.client);
        record.cores = after.machine.since(&before.machine);
    }

    fn note_produced(&self, record: &mut CellRecord, produced: &[Produced]) {
        let mut lateness = Lateness::default();
        for one in produced {
            record.produced_bytes += one.bytes;
            record.produced_records += one.records;
            lateness.add(&one.lateness);
            for (error, count) in &one.errors {
                *record.errors.entry(error.clone()).or_default() += count;
            }
            if self.terms.latencies_at_saturation || matches!(self.cell.pace, Pace::Rate(_)) {
                record.produce.add(&one.latencies);
            }
        }
        if matches!(self.cell.pace, Pace::Rate(_)) {
            record.lateness = lateness;
        }
    }

    /// Files are prepared ahead of what is in them: pages count up to the bytes of the log.
    fn residency(&self, filled: &Filled) -> Result<Option<Residency>> {
        let mut whole = Residency::default();
        for directory in self.directories(&filled.topic)? {
            each_log(&directory, &mut |_, file| {
                let cached = ringlog::sys::residency(file, 0, file.metadata()?.len())?;
                whole.add(Residency { cached_pages: cached.cached_pages, total_pages: cached.pages });
                Ok(())
            })
            .context("asking what the page cache holds of the log")?;
        }
        whole.total_pages = whole.total_pages.min(filled.bytes.div_ceil(4096)).max(whole.cached_pages);
        Ok((whole.total_pages > 0).then_some(whole))
    }

    /// Directories below the server's that belong to a topic.
    fn directories(&self, topic: &str) -> Result<Vec<PathBuf>> {
        let Some(data_dir) = &self.data_dir else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut open = vec![data_dir.clone()];
        while let Some(directory) = open.pop() {
            let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
            for entry in entries {
                let path = entry?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if path.is_dir() {
                    let ours = name.starts_with(topic) && !name.ends_with("deleted");
                    if ours { found.push(path) } else { open.push(path) }
                }
            }
        }
        Ok(found)
    }
}

/// The topic that a cell has to itself.
#[must_use]
pub fn topic_of(cell: &Cell) -> String {
    format!("cell-{:05}", cell.index)
}

/// A second one, where some follow producers while others catch up.
#[must_use]
pub fn followed_topic_of(cell: &Cell) -> String {
    format!("followed-{:05}", cell.index)
}

impl Failure {
    /// Starts a task whose error ends the cell; `None` if there was one.
    fn start<T: 'static>(
        &self,
        ring: &Ring,
        work: impl Future<Output = Result<T>> + 'static,
    ) -> Started<Option<T>> {
        let failure = self.clone();
        start(ring, async move {
            match work.await {
                Ok(value) => Some(value),
                Err(error) => {
                    failure.error.borrow_mut().get_or_insert(error);
                    failure.happened.raise();
                    None
                }
            }
        })
    }
}

impl Readers {
    /// Takes over what consumers measured and holds what they saw against what producers were told.
    fn close(self, produced: &[Produced], record: &mut CellRecord) {
        for consumer in self.consumers {
            let consumed = consumer.consumed.take();
            record.consumed_bytes += consumed.bytes;
            record.consumed_records += consumed.records;
            record.end_to_end.add(&consumed.end_to_end);
            for (error, count) in consumed.errors {
                *record.errors.entry(error).or_default() += count;
            }
            let sent: Vec<Sent> =
                produced.iter().map(|one| one.sent[consumer.partition() as usize].clone()).collect();
            record.findings.add(&consumer.close_account(&sent));
        }
    }
}

/// The highest end that any producer was told, by partition.
fn end_offsets(produced: &[Produced]) -> BTreeMap<u32, i64> {
    let mut ends = BTreeMap::new();
    for one in produced {
        for (partition, end) in (0..).zip(&one.end_offsets) {
            let known: &mut i64 = ends.entry(partition).or_default();
            *known = (*known).max(*end);
        }
    }
    ends
}
