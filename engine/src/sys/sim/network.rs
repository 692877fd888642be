//! The simulated network.

use std::io;
use std::net::SocketAddr;

use super::world::{Address, Outcome, State, World};
use crate::sys::op::{Listener, Request, Socket};

pub(crate) struct SimSocket;

pub(crate) struct SimListener;

pub(super) enum NetworkEvent {}

#[derive(Default)]
pub(super) struct Network;

impl SimListener {
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }
}

impl SimSocket {
    pub(crate) fn shutdown(&self) {}

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        None
    }
}

pub(super) fn listen(_: &World, _: usize, _: SocketAddr) -> io::Result<Listener> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn stream_socket(_: &World, _: SocketAddr) -> Socket {
    Socket(std::rc::Rc::new(crate::sys::op::SocketKind::Sim(SimSocket)))
}

impl State {
    pub(super) fn submit_network(&mut self, address: Address, _: &mut Request) {
        self.complete_later(address, Outcome::failed(libc::ENOTSUP));
    }

    pub(super) fn cancel_network(&mut self, _: Address) {}

    pub(super) fn room_to_send(&mut self, _: &Socket) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn send_now(&mut self, _: &Socket, _: &[u8]) {}

    pub(super) fn network_event(&mut self, event: NetworkEvent) {
        match event {}
    }

    pub(super) fn forget_ring(&mut self, _: usize) {}
}
