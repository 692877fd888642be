//! Waiting for several things at once, without allocating.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// Both results, however the two interleave.
pub async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_done, mut b_done) = (None, None);
    poll_fn(|cx| {
        if a_done.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(cx)
        {
            a_done = Some(value);
        }
        if b_done.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(cx)
        {
            b_done = Some(value);
        }
        match (a_done.take(), b_done.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (a_done, b_done) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// All of up to four results, in order; absent futures give `None`.
pub async fn join_writes<F: Future>(futures: [Option<F>; 4]) -> [Option<F::Output>; 4] {
    let [a, b, c, d] = futures;
    let (ab, cd) = join(join(maybe(a), maybe(b)), join(maybe(c), maybe(d))).await;
    [ab.0, ab.1, cd.0, cd.1]
}

async fn maybe<F: Future>(future: Option<F>) -> Option<F::Output> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}
