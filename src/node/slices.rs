//! Work of the control thread in slices: a task with much to read, compare or encode lets other tasks of
//! the thread run in between.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use crate::base::limits::CONTROL_SLICE_BYTES;

/// The work of one task since others had their turn.
#[derive(Debug, Default)]
pub(super) struct Slice {
    done: usize,
}

impl Slice {
    /// Counts work, in bytes or steps that take as long as one, and waits for the others' turn when it is
    /// due.
    pub(super) async fn spend(&mut self, bytes: usize) {
        self.done = self.done.saturating_add(bytes);
        if self.done >= CONTROL_SLICE_BYTES {
            self.done = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Makes a response whose body comes in slices, with a turn for others between two: what compresses it has
/// the thread for one slice at a time.
pub(super) async fn in_slices(response: Response) -> Response {
    let is_short = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|bytes| bytes <= CONTROL_SLICE_BYTES as u64);
    match is_short {
        true => response,
        false => response.map(|body| Body::new(Sliced { body, rest: Bytes::new(), waits: false })),
    }
}

/// A body in slices.
struct Sliced {
    body: Body,
    /// Of a frame, what has not gone.
    rest: Bytes,
    /// The next slice is for another turn.
    waits: bool,
}

impl HttpBody for Sliced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if std::mem::take(&mut self.waits) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return other,
            }
        }
        let slice = self.rest.len().min(CONTROL_SLICE_BYTES);
        self.waits = true;
        let data = self.rest.split_to(slice);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let inner = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt;

    use super::*;

    /// How often another task of the thread has its turn while `work` goes on.
    async fn turns_beside(work: impl Future<Output = ()>) -> usize {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        work.await;
        other.abort();
        turns.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn others_have_their_turn_between_slices() {
        let work = async {
            let mut slice = Slice::default();
            for _ in 0..40 {
                slice.spend(CONTROL_SLICE_BYTES / 4).await;
            }
        };
        assert!(turns_beside(work).await >= 9);
    }

    #[tokio::test]
    async fn a_long_body_comes_in_slices() {
        let text = "0123456789".repeat(CONTROL_SLICE_BYTES);
        let bytes = text.len();
        let sliced = in_slices(Response::new(Body::from(text.clone()))).await;
        assert_eq!(sliced.body().size_hint().exact(), Some(bytes as u64));
        let mut received = Vec::new();
        let turns = turns_beside(async {
            let mut body = sliced.into_body();
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                assert!(data.len() <= CONTROL_SLICE_BYTES);
                received.extend_from_slice(&data);
            }
        })
        .await;
        assert!(received == text.as_bytes());
        assert!(turns >= bytes / CONTROL_SLICE_BYTES - 1, "{turns}");
    }
}
