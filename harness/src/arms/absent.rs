//! The place of the tokio-uring arm in a build without it.

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::work::Work;

/// Refuses.
pub(super) fn serve(_work: Arc<Work>, _listener: TcpListener) -> Result<()> {
    bail!("this build has no tokio-uring: build with `--features tokio-uring`")
}
