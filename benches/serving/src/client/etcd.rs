//! etcd over gRPC: a unary call is one HTTP/2 request whose message follows
//! five bytes (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Request, Version};
use hyper_util::rt::TokioExecutor;
use prost::Message;

use self::messages::{
    Operation, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
    TxnRequest, TxnResponse,
};
use super::{Failure, stream};
use crate::data::Pair;

/// The part of `etcdserverpb.KV` (etcd's `rpc.proto` and `kv.proto`, version
/// 3.4) that is used; fields that are left out are skipped when read.
mod messages {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PutRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ResponseHeader {
        #[prost(int64, tag = "3")]
        pub(super) revision: i64,
    }

    /// The rest of the header, in an answer that tells who leads.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Teller {
        #[prost(uint64, tag = "2")]
        pub(super) member_id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct StatusRequest {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct StatusResponse {
        #[prost(message, optional, tag = "1")]
        pub(super) header: Option<Teller>,
        #[prost(uint64, tag = "4")]
        pub(super) leader: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PutResponse {
        #[prost(message, optional, tag = "1")]
        pub(super) header: Option<ResponseHeader>,
    }

    /// `serializable`, tag 7, is left out: false, the default, is linearizable.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RangeRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct KeyValue {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "5")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RangeResponse {
        #[prost(message, repeated, tag = "2")]
        pub(super) kvs: Vec<KeyValue>,
    }

    /// One case of the `oneof` in `RequestOp`.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Operation {
        #[prost(message, optional, tag = "2")]
        pub(super) put: Option<PutRequest>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct TxnRequest {
        #[prost(message, repeated, tag = "2")]
        pub(super) success: Vec<Operation>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct TxnResponse {
        #[prost(bool, tag = "2")]
        pub(super) succeeded: bool,
    }
}

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// One connection.
pub(crate) struct Client {
    requests: SendRequest<Full<Bytes>>,
    service: String,
}

impl Client {
    pub(super) async fn connect(port: u16) -> Result<Self, Failure> {
        let io = stream(port).await?;
        let (requests, connection) = handshake(TokioExecutor::new(), io).await?;
        // Its end shows in the requests.
        tokio::spawn(connection);
        Ok(Self {
            requests,
            service: format!("http://127.0.0.1:{port}/etcdserverpb."),
        })
    }

    pub(super) async fn leads(&mut self) -> Result<bool, Failure> {
        let asked = self.call("Maintenance/Status", &StatusRequest {});
        let status: StatusResponse = asked.await?;
        let teller = status.header.map(|header| header.member_id);
        Ok(status.leader != 0 && teller == Some(status.leader))
    }

    pub(super) async fn put(&mut self, pair: &Pair) -> Result<(), Failure> {
        let written: PutResponse = self.call("KV/Put", &put(pair)).await?;
        match written.header {
            Some(header) if header.revision > 0 => Ok(()),
            _ => Err(format!("{}: acknowledged without a revision", pair.key).into()),
        }
    }

    pub(super) async fn put_all(&mut self, pairs: &[Pair]) -> Result<(), Failure> {
        let operation = |pair| Operation {
            put: Some(put(pair)),
        };
        let request = TxnRequest {
            success: pairs.iter().map(operation).collect(),
        };
        let done: TxnResponse = self.call("KV/Txn", &request).await?;
        match done.succeeded {
            true => Ok(()),
            false => Err("a transaction without conditions did not succeed".into()),
        }
    }

    pub(super) async fn get(&mut self, key: &str) -> Result<Option<String>, Failure> {
        let request = RangeRequest { key: key.into() };
        let found: RangeResponse = self.call("KV/Range", &request).await?;
        let Some(found) = found.kvs.into_iter().next() else {
            return Ok(None);
        };
        if found.key != key.as_bytes() {
            let other = String::from_utf8_lossy(&found.key);
            return Err(format!("{key}: answered for {other}").into());
        }
        Ok(Some(String::from_utf8(found.value)?))
    }

    async fn call<Q: Message, A: Message + Default>(
        &mut self,
        method: &str,
        message: &Q,
    ) -> Result<A, Failure> {
        let length = message.encoded_len();
        let mut body = BytesMut::with_capacity(PREFIX + length);
        body.put_u8(0);
        body.put_u32(u32::try_from(length)?);
        message.encode(&mut body)?;
        let request = Request::post(format!("{}{method}", self.service))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(body.freeze()))?;
        self.requests.ready().await?;
        let (head, body) = self.requests.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        // A call that failed at once has its trailers in place of headers.
        let trailers = body.trailers().unwrap_or(&head.headers);
        let status = trailers.get("grpc-status").map(|status| status.as_bytes());
        if !head.status.is_success() || status != Some(b"0") {
            return Err(format!("{method}: {}: {trailers:?}", head.status).into());
        }
        let body = body.to_bytes();
        match body.get(PREFIX..) {
            Some(message) if body[0] == 0 => Ok(A::decode(message)?),
            _ => Err(format!("{method}: {} bytes are no plain message", body.len()).into()),
        }
    }
}

fn put(pair: &Pair) -> PutRequest {
    PutRequest {
        key: pair.key.clone().into(),
        value: pair.value.clone().into(),
    }
}
