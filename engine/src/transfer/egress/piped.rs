//! Pipes on the way to a socket: what all ways that lead through one have in common.

use std::io;

use super::Outgoing;
use crate::sys::Pipe;

/// A smaller pipe is not worth a call for each fill: a user whose pipes are large in sum gets two pages.
const PIPE_BYTES_MIN: usize = 64 << 10;

impl Outgoing<'_> {
    /// An empty pipe; none where there are no descriptors left, or where this user gets only small ones: then the bytes take
    /// a way without.
    ///
    /// # Errors
    /// Anything else that the kernel said.
    pub(super) fn take_pipe(&self) -> io::Result<Option<Pipe>> {
        match self.ring.pipe() {
            Ok(pipe) => Ok((pipe.capacity() >= PIPE_BYTES_MIN).then_some(pipe)),
            Err(error) if crate::sys::is_passing(&error) => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("a pipe for {}: {error}", self.egress))),
        }
    }

    /// Sends all that `pipe` holds; waits while the socket is full. `more` says that further bytes follow at once.
    pub(super) async fn drain(&self, pipe: &mut Pipe, more: bool) -> io::Result<()> {
        while pipe.held() > 0 {
            match self.ring.splice_out(pipe, self.socket, more) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => self.note(|c| c.sends += 1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ring.writable(self.socket).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
