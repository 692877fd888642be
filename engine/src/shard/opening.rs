//! Opening a shard's partitions at a start: those that sleep at once, from what the manifest says; the others many at a time,
//! since each of them waits for the disk more than anything else.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::errors::OpenError;
use super::manifest;
use super::node::Node;
use super::partition::{Partition, partition_dir};
use super::recovery::{self, Opened, Start};
use super::replay::Sources;
use super::shard::Shard;
use super::side_by_side::side_by_side;
use crate::log::PartitionState;
use crate::types::PartitionId;

/// Partitions that are looked at side by side.
const SIDE_BY_SIDE: usize = 32;
/// Where more partitions than this have something to flush, all of the file system is flushed once.
const SYNCED_ONE_BY_ONE: usize = 8;

/// One to be looked at: which topic of the node's, which partition, and what the manifest knows of it.
struct Task {
    topic: usize,
    index: i32,
    known: Option<PartitionState>,
}

struct Opening {
    shard: Shard,
    node: Arc<Node>,
    /// By topic.
    opened: RefCell<Vec<Vec<Partition>>>,
    sources: Sources,
    unsynced: RefCell<Vec<Opened>>,
    failure: RefCell<Option<OpenError>>,
}

/// Opens every partition that is this shard's own, and writes its manifest.
pub(super) async fn open_partitions(shard: &Shard, node: &Arc<Node>) -> Result<(), OpenError> {
    let mut known = node.manifests.take(shard.id());
    let opening = Rc::new(Opening {
        shard: shard.clone(),
        node: node.clone(),
        opened: RefCell::new(vec![Vec::new(); node.topics.len()]),
        sources: Sources::default(),
        unsynced: RefCell::default(),
        failure: RefCell::default(),
    });
    let mut tasks = VecDeque::new();
    for (topic, plan) in node.topics.iter().enumerate() {
        for index in shard.own_indexes(plan) {
            let known = known.remove(&PartitionId { topic: plan.id, index });
            let task = Task { topic, index, known };
            match recovery::open_asleep(&shard.0.common, &opening.start(&task)) {
                Some(partition) => opening.opened.borrow_mut()[topic].push(partition),
                None => tasks.push_back(task),
            }
        }
    }
    let work = opening.clone();
    side_by_side(shard.ring(), SIDE_BY_SIDE, tasks, move |task| work.clone().look_at(task)).await;
    let opened = opening.opened.take();
    if let Some(error) = opening.failure.take() {
        opened.iter().flatten().for_each(Partition::close);
        return Err(error);
    }
    for (plan, partitions) in node.topics.iter().zip(opened) {
        shard.enter_topic(&shard.topic_of(plan, partitions));
    }
    let (common, unsynced) = (&shard.0.common, opening.unsynced.take());
    match unsynced.len() > SYNCED_ONE_BY_ONE {
        true => common.device_flush.now(&common.ring).await.map_err(|e| {
            let dir = common.config.data_dir.display();
            io::Error::new(e.kind(), format!("flush of the file system of {dir}: {e}"))
        })?,
        false => {
            for opened in &unsynced {
                opened.sync(&common.ring).await?;
            }
        }
    }
    manifest::begin(shard).await?;
    // New epochs, where the manifest does not tell of them.
    for partition in shard.own_partitions().iter().filter(|partition| partition.0.epochs_unstored.get()) {
        if !common.manifest.is_kept() || partition.entry().state.is_none() {
            recovery::unless_full(partition.store_epochs().await)?;
        }
    }
    Ok(())
}

impl Opening {
    fn start(&self, task: &Task) -> Start<'_> {
        let plan = &self.node.topics[task.topic];
        let board = &plan.boards[task.index as usize];
        Start {
            plan,
            index: task.index,
            dir: partition_dir(&self.shard.config().data_dir, &plan.name, task.index),
            recovery_point: board.recovery_point(),
            log_start: board.log_start(),
            clean: self.node.clean,
            known: task.known.clone(),
        }
    }

    async fn look_at(self: Rc<Opening>, task: Task) {
        if self.failure.borrow().is_some() {
            return;
        }
        match recovery::open_partition(&self.shard.0.common, self.start(&task), &self.sources).await {
            Ok(opened) => {
                self.opened.borrow_mut()[task.topic].push(opened.partition.clone());
                self.unsynced.borrow_mut().extend(Some(opened).filter(Opened::is_unsynced));
            }
            Err(error) => {
                self.failure.borrow_mut().get_or_insert(error);
            }
        }
    }
}
