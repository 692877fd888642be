//! The bytes of what a fetch gave, wherever they lie.

use ringlog::sys::Ring;
use ringlog::transfer::Piece;

pub async fn read(ring: &Ring, pieces: Vec<Piece>) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Memory(lease) => all.extend_from_slice(&lease),
            Piece::File { file, at, bytes } => {
                let mut into = ring.lease(bytes as usize).await.unwrap();
                drop(into.split_off(bytes as usize));
                let (read, into) = ring.read(&file.file, at.0, into).await;
                assert_eq!(read.unwrap() as u64, bytes);
                all.extend_from_slice(&into);
            }
        }
    }
    all
}
