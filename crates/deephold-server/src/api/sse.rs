//! Server-sent events as a body, and the end of the work when nobody reads it any more.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use http_body::Frame;
use tokio::sync::mpsc;

/// Events that may wait for a slow reader; then the writer waits, and after [`STALL`] gives up.
const WAITING_MAX: usize = 64;

/// A reader that takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(60);

/// Writes events.
pub(crate) struct EventSender(mpsc::Sender<Bytes>);

/// The reader has gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl EventSender {
    /// Sends a frame as it is.
    pub(crate) async fn raw(&self, text: String) -> Result<(), Gone> {
        self.bytes(Bytes::from(text)).await
    }

    /// The same.
    pub(crate) async fn bytes(&self, bytes: Bytes) -> Result<(), Gone> {
        match tokio::time::timeout(STALL, self.0.send(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Resolves when the reader has gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

struct Events(mpsc::Receiver<Bytes>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// An event stream, and where to write it.
pub(crate) fn stream() -> (EventSender, Response<Body>) {
    written("text/event-stream; charset=utf-8")
}

/// A JSON body that comes in parts, and where to write it.
pub(crate) fn lines() -> (EventSender, Response<Body>) {
    written("application/json")
}

fn written(content_type: &'static str) -> (EventSender, Response<Body>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let mut response = Response::new(Body::new(Events(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would hold the answer back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (EventSender(sender), response)
}
