//! Aspen over HTTP/1.1.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Failure, stream};
use crate::data::Pair;

/// One connection.
pub(crate) struct Client {
    requests: SendRequest<Full<Bytes>>,
    host: String,
}

#[derive(Serialize)]
struct Value<'a> {
    value: &'a str,
}

#[derive(Serialize)]
struct Batch<'a> {
    set: &'a [Pair],
    delete: [&'a str; 0],
}

/// What is looked at in the answer to a put.
#[derive(Deserialize)]
struct Written {
    key: String,
    index: u64,
}

#[derive(Deserialize)]
struct Status {
    role: String,
}

#[derive(Deserialize)]
struct Read {
    key: String,
    value: String,
}

impl Client {
    pub(crate) async fn connect(port: u16) -> Result<Self, Failure> {
        let (requests, connection) = handshake(stream(port).await?).await?;
        // Its end shows in the requests.
        tokio::spawn(connection);
        Ok(Self {
            requests,
            host: format!("127.0.0.1:{port}"),
        })
    }

    pub(super) async fn ready(&mut self) -> Result<(), Failure> {
        let response = self.call(Method::GET, "/readyz", Vec::new()).await?;
        succeeded(response).await.map(drop)
    }

    pub(super) async fn leads(&mut self) -> Result<bool, Failure> {
        let response = self.call(Method::GET, "/status", Vec::new()).await?;
        let status: Status = serde_json::from_slice(&succeeded(response).await?)?;
        Ok(status.role == "leader")
    }

    /// Has node `id` lead, and returns once it does.
    pub(crate) async fn hand_over(&mut self, id: u64) -> Result<(), Failure> {
        let body = format!("{{\"id\":{id}}}").into_bytes();
        let response = self.call(Method::POST, "/admin/leader", body).await?;
        succeeded(response).await.map(drop)
    }

    pub(super) async fn put(&mut self, pair: &Pair) -> Result<(), Failure> {
        let body = serde_json::to_vec(&Value { value: &pair.value })?;
        let path = format!("/api/kv/{}", pair.key);
        let response = self.call(Method::POST, &path, body).await?;
        let written: Written = serde_json::from_slice(&succeeded(response).await?)?;
        if written.key != pair.key || written.index == 0 {
            return Err(format!("{}: acknowledged as {}", pair.key, written.key).into());
        }
        Ok(())
    }

    pub(super) async fn put_all(&mut self, pairs: &[Pair]) -> Result<(), Failure> {
        let batch = Batch {
            set: pairs,
            delete: [],
        };
        let body = serde_json::to_vec(&batch)?;
        let response = self.call(Method::POST, "/api/kv", body).await?;
        succeeded(response).await.map(drop)
    }

    pub(super) async fn get(&mut self, key: &str) -> Result<Option<String>, Failure> {
        let path = format!("/api/kv/{key}");
        let response = self.call(Method::GET, &path, Vec::new()).await?;
        if response.status() == StatusCode::NOT_FOUND {
            response.into_body().collect().await?;
            return Ok(None);
        }
        let read: Read = serde_json::from_slice(&succeeded(response).await?)?;
        if read.key != key {
            return Err(format!("{key}: answered for {}", read.key).into());
        }
        Ok(Some(read.value))
    }

    /// Makes a request, takes what answers it and throws it away.
    ///
    /// Returns how many bytes that was, and the first of them.
    pub(crate) async fn drain(
        &mut self,
        method: Method,
        path: &str,
    ) -> Result<(u64, Bytes), Failure> {
        let response = self.call(method, path, Vec::new()).await?;
        if !response.status().is_success() {
            succeeded(response).await?;
            return Err("no error has the status of a success".into());
        }
        let (mut bytes, mut first) = (0, Bytes::new());
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            bytes += data.len() as u64;
            if first.is_empty() {
                first = data;
            }
        }
        Ok((bytes, first))
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        self.requests.ready().await?;
        let request = request.body(Full::from(body))?;
        Ok(self.requests.send_request(request).await?)
    }
}

/// The whole body of an answer, which hyper has read up to its declared length.
async fn succeeded(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if status != StatusCode::OK {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
    }
    Ok(body)
}
