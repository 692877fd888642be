//! A broker on a whole engine: a listener on every shard, all on one address.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;

use ringlog::sys::AddressClaim;
use ringlog::{Engine, EngineError};

use crate::config::BrokerConfig;
use crate::serve::{Served, bind, serve};

/// A broker that serves.
pub struct Serving {
    address: SocketAddr,
    ended: mpsc::Receiver<(u16, Served)>,
    shards: usize,
    /// Nobody else may listen there meanwhile.
    _claim: AddressClaim,
}

/// Listens on every shard of `engine` and serves until it is closed. Clients may connect when this returns.
///
/// # Errors
/// What the kernel said of the address, or that a wildcard address is no address to tell clients.
pub fn start(engine: &Engine, config: BrokerConfig) -> Result<Serving, EngineError> {
    let shards = engine.cores().len();
    let claim = AddressClaim::new(config.listen)?;
    let address = claim.address();
    let config = BrokerConfig { listen: address, shared: true, ..config };
    let (tell_bound, told_bound) = mpsc::channel::<io::Result<()>>();
    let (tell_ended, ended) = mpsc::channel();
    engine.serve_on_each_shard(move |shard| async move {
        match bind(&shard, config) {
            Ok(bound) => {
                let _ = tell_bound.send(Ok(()));
                let served = serve(bound).await;
                let _ = tell_ended.send((shard.id().0, served));
            }
            Err(error) => drop(tell_bound.send(Err(error))),
        }
    })?;
    for _ in 0..shards {
        told_bound.recv().map_err(|_| EngineError::Stopped)??;
    }
    Ok(Serving { address, ended, shards, _claim: claim })
}

impl Serving {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What serving came to, by shard; after the engine was closed.
    #[must_use]
    pub fn ended(self) -> Vec<Option<Served>> {
        let mut all = vec![None; self.shards];
        for (shard, served) in self.ended {
            all[usize::from(shard)] = Some(served);
        }
        all
    }
}
