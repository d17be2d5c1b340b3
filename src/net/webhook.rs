//! The HTTP client of a webhook: one POST, and what became of it.
//!
//! Only plain `http` is spoken: what ends TLS stands beside the member. Must not know: what is told, retries.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why an address is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// It is no absolute `http` address.
    #[error("{address:?} is not an address that begins with http://")]
    Address {
        /// As it was given.
        address: String,
    },
    /// A header can't have this value.
    #[error("the value of the authorization header has characters that a header can't have")]
    Authorization,
}

/// A webhook; cheap to clone.
#[derive(Clone)]
pub struct WebhookClient {
    uri: Uri,
    authorization: Option<HeaderValue>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl std::fmt::Debug for WebhookClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookClient").field("host", &self.uri.host()).finish_non_exhaustive()
    }
}

impl WebhookClient {
    /// For an address, with the value of its `Authorization` header, if it wants one.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn new(address: &str, authorization: Option<&str>) -> Result<Self, WebhookError> {
        let uri = address.parse::<Uri>().ok();
        let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()));
        let uri = uri.ok_or_else(|| WebhookError::Address { address: address.to_owned() })?;
        let value = |text: &str| {
            let mut value = HeaderValue::from_str(text).map_err(|_| WebhookError::Authorization)?;
            value.set_sensitive(true);
            Ok(value)
        };
        let authorization = authorization.map(value).transpose()?;
        Ok(Self { uri, authorization, client: Client::builder(TokioExecutor::new()).build_http() })
    }

    /// Sends gzipped NDJSON, once.
    ///
    /// # Errors
    /// Why it was not taken, for people.
    pub async fn post(&self, body: Bytes) -> Result<(), String> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(CONTENT_TYPE, "application/x-ndjson")
            .header(CONTENT_ENCODING, "gzip");
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        match tokio::time::timeout(PATIENCE, self.client.request(request)).await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
            Ok(Ok(answer)) => Err(format!("it answered {}", answer.status())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it did not answer in time".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_webhook_is_told_with_its_headers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
        let hearing = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"body") {
                let read = stream.read_buf(&mut heard).await.unwrap();
                assert!(read > 0, "it hung up");
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            String::from_utf8(heard).unwrap()
        });
        let webhook = WebhookClient::new(&address, Some("Bearer x")).unwrap();
        assert_eq!(webhook.post(Bytes::from_static(b"body")).await, Ok(()));
        let heard = hearing.await.unwrap();
        assert!(heard.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{heard}");
        for header in ["authorization: Bearer x", "content-encoding: gzip", "content-type: application/x-ndjson"] {
            assert!(heard.contains(header), "{heard}");
        }
        let nobody = WebhookClient::new("http://127.0.0.1:1/", None).unwrap();
        assert!(nobody.post(Bytes::new()).await.is_err());
    }

    #[test]
    fn an_address_that_can_not_be_told_is_refused_at_once() {
        for bad in ["", "movies", "/hook", "https://example.org/", "ftp://example.org", "http:///x"] {
            assert!(matches!(WebhookClient::new(bad, None), Err(WebhookError::Address { .. })), "{bad}");
        }
        assert!(matches!(WebhookClient::new("http://a/", Some("x\ny")), Err(WebhookError::Authorization)));
    }
}
