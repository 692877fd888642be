//! A consumer: one connection that reads every partition and checks every record.

use std::rc::Rc;

use anyhow::{Result, anyhow};
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms};
use ringlog_broker::wire::{ApiKey, Encoder, ErrorCode};

use crate::client::{Connection, FETCH_VERSION, header, read};
use crate::load::{Load, add};
use crate::verify::{Account, Findings};

/// Asked for per partition, as Kafka's consumers do.
const PARTITION_BYTES_MAX: i32 = 1 << 20;
const ANSWER_BYTES_MAX: i32 = 8 << 20;
/// A poll waits this long for the first byte.
const WAIT_MS: i32 = 50;

/// Runs consumer `number` until it has everything that was acknowledged.
pub async fn run(load: Rc<Load>, number: u32) {
    match consume(&load).await {
        Ok(findings) => load.findings.borrow_mut().add(&findings),
        Err(error) => load.fail(&format!("consumer {number}"), &error),
    }
    load.consumers_running.set(load.consumers_running.get() - 1);
}

async fn consume(load: &Rc<Load>) -> Result<Findings> {
    let mut connection = Connection::open(&load.ring, load.address, 4 << 20).await?;
    let mut accounts: Vec<Account> = (0..load.spec.partitions)
        .map(|partition| Account::new(partition, load.cell.index, load.spec.producers, 0))
        .collect();
    let mut request = Vec::with_capacity(4096);
    let mut correlation_id = 0;
    while !is_done(load, &accounts) {
        correlation_id += 1;
        request.clear();
        encode(load, &accounts, correlation_id, &mut request)?;
        connection.send_bytes(&request).await?;
        let frame = connection.next_frame().await?;
        let now = load.ring.now();
        let (id, response) = read::<FetchResponse<'_>>(&frame, ApiKey::Fetch, FETCH_VERSION)?;
        anyhow::ensure!(id == correlation_id, "an answer to fetch {id}, asked was {correlation_id}");
        for topic in response.topics.iter() {
            for partition in topic.partitions.iter() {
                if partition.error_code != ErrorCode::None {
                    return Err(anyhow!("partition {}: {:?}", partition.index, partition.error_code));
                }
                let Some(range) = partition.records.clone() else { continue };
                let account = accounts
                    .get_mut(partition.index as usize)
                    .ok_or_else(|| anyhow!("partition {} was not asked for", partition.index))?;
                let bytes = &frame[range];
                let before = account.next_offset();
                let mut intended = 0;
                let records = account.take(&load.payload, bytes, |head, _| intended = head.intended_ns);
                anyhow::ensure!(
                    bytes.is_empty() || account.next_offset() > before,
                    "partition {}: {} bytes at offset {before} hold no record",
                    partition.index,
                    bytes.len()
                );
                add(&load.counts.total_consumed_bytes, bytes.len() as u64);
                if load.measuring.get() && !bytes.is_empty() {
                    add(&load.counts.consumed_bytes, bytes.len() as u64);
                    add(&load.counts.consumed_records, records);
                    load.end_to_end.borrow_mut().record(now.0.saturating_sub(intended));
                }
            }
        }
    }
    let sent = load.sent.borrow();
    let mut findings = Findings::default();
    for (account, sent) in accounts.into_iter().zip(sent.iter()) {
        findings.add(&account.reconcile(sent));
    }
    Ok(findings)
}

fn is_done(load: &Load, accounts: &[Account]) -> bool {
    let goal = load.goal.borrow();
    let reached =
        |goal: &Vec<i64>| accounts.iter().zip(goal).all(|(account, end)| account.next_offset() >= *end);
    load.abandon.get() || goal.as_ref().is_some_and(reached)
}

fn encode(load: &Load, accounts: &[Account], correlation_id: i32, into: &mut Vec<u8>) -> Result<()> {
    let header = header(ApiKey::Fetch, FETCH_VERSION, correlation_id);
    let terms = FetchTerms {
        max_wait_ms: WAIT_MS,
        min_bytes: 1,
        max_bytes: ANSWER_BYTES_MAX,
        ..FetchTerms::default()
    };
    let mut writer = FetchRequestWriter::begin(Encoder::growing(into), &header, &terms, 1)?;
    writer.topic(&load.topic, &[0; 16], accounts.len());
    // The first partition changes from fetch to fetch, so that the answer's limit starves none.
    let count = accounts.len();
    for step in 0..count {
        let index = (step + correlation_id as usize) % count;
        writer.partition(&FetchPartition {
            index: index as i32,
            fetch_offset: accounts[index].next_offset(),
            partition_max_bytes: PARTITION_BYTES_MAX,
            ..FetchPartition::default()
        });
    }
    writer.finish(&[])?;
    Ok(())
}
