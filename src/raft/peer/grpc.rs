//! gRPC with messages that are bytes: tonic frames them, over connections of
//! our own, so that it is known whether a request was ever sent.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Status, Streaming};

use super::MAX_MESSAGE_BYTES;

/// Requests with one answer.
pub(super) const CALL: &str = "/aspen.Peer/Call";
/// The stream of appends.
pub(super) const APPEND: &str = "/aspen.Peer/Append";
/// The stream of a snapshot.
pub(super) const SNAPSHOT: &str = "/aspen.Peer/Snapshot";

/// Messages are bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// An open HTTP/2 connection, as tonic wants it.
#[derive(Clone)]
pub(super) struct Http2(pub(super) SendRequest<Body>);

impl tower_service::Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Http2 {
    fn client(&self) -> tonic::client::Grpc<Self> {
        // HTTP/2 wants an authority; the connection knows whom it reaches.
        let origin = http::Uri::from_static("http://peer");
        tonic::client::Grpc::with_origin(self.clone(), origin)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// One message, one answer.
    pub(super) async fn unary(&self, path: &'static str, message: Bytes) -> Result<Bytes, Status> {
        let mut client = self.client();
        client.ready().await.map_err(closed)?;
        let request = tonic::Request::new(message);
        let path = PathAndQuery::from_static(path);
        let answer = client.unary(request, path, Raw).await?;
        Ok(answer.into_inner())
    }

    /// A stream of messages, and the stream of answers.
    pub(super) async fn stream<S>(
        &self,
        path: &'static str,
        messages: S,
    ) -> Result<Streaming<Bytes>, Status>
    where
        S: futures_util::Stream<Item = Bytes> + Send + 'static,
    {
        let mut client = self.client();
        client.ready().await.map_err(closed)?;
        let request = tonic::Request::new(messages);
        let path = PathAndQuery::from_static(path);
        let answers = client.streaming(request, path, Raw).await?;
        Ok(answers.into_inner())
    }
}

/// Whether a request that failed like this was not looked at by its receiver: the
/// connection was closed before it was sent (closed, or canceled while it stood in line),
/// or its receiver closes it and said so (RFC 9113, 6.8 and 8.7).
pub(super) fn was_not_taken(status: &Status) -> bool {
    let mut error: Option<&dyn Error> = Some(status);
    while let Some(at) = error {
        if at
            .downcast_ref::<hyper::Error>()
            .is_some_and(|hyper| hyper.is_closed() || hyper.is_canceled())
        {
            return true;
        }
        if let Some(h2) = at.downcast_ref::<h2::Error>() {
            let left = h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR);
            let refused = h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            return h2.is_remote() && (left || refused);
        }
        error = at.source();
    }
    false
}

fn closed(error: hyper::Error) -> Status {
    Status::from_error(Box::new(error))
}
