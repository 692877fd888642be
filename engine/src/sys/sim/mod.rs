//! The simulated world.

use std::io;
use std::net::SocketAddr;

use super::clock::Moment;
use super::op::{Completion, File, Listener, Request, Socket, Token};
use super::ring::RingCounters;
use crate::types::Timestamp;

pub(crate) struct SimFile;
pub(crate) struct SimSocket;
pub(crate) struct SimListener;
pub(crate) struct SimLock;
pub(crate) struct SimDriver;

impl SimListener {
    pub(crate) fn address(&self) -> SocketAddr {
        unimplemented!()
    }
}

impl SimSocket {
    pub(crate) fn shutdown(&self) {
        unimplemented!()
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        unimplemented!()
    }
}

impl SimFile {
    pub(crate) fn is_direct(&self) -> bool {
        unimplemented!()
    }
}

#[allow(clippy::unused_self)]
impl SimDriver {
    pub(crate) fn now(&self) -> Moment {
        unimplemented!()
    }

    pub(crate) fn wall_clock(&self) -> Timestamp {
        unimplemented!()
    }

    pub(crate) fn random_u64(&mut self) -> u64 {
        unimplemented!()
    }

    pub(crate) fn counters(&self) -> RingCounters {
        unimplemented!()
    }

    pub(crate) fn listen(&mut self, _address: SocketAddr) -> io::Result<Listener> {
        unimplemented!()
    }

    pub(crate) fn stream_socket(&mut self, _address: SocketAddr) -> io::Result<Socket> {
        unimplemented!()
    }

    pub(crate) fn sendfile(&mut self, _: &Socket, _: &File, _: u64, _: u64) -> io::Result<usize> {
        unimplemented!()
    }

    pub(crate) fn is_resident(&mut self, _: &File, _: u64, _: u64) -> bool {
        unimplemented!()
    }

    pub(crate) fn submit(&mut self, _: Token, _: &mut Request) {
        unimplemented!()
    }

    pub(crate) fn cancel(&mut self, _: Token) {
        unimplemented!()
    }

    pub(crate) fn enter(&mut self, _wait: bool, _deadline: Option<Moment>) {
        unimplemented!()
    }

    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        unimplemented!()
    }
}
