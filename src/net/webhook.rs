//! The HTTP client of a webhook: one POST, and what became of it.
//!
//! Over TLS whoever the system's own list of authorities vouches for is trusted (`SSL_CERT_FILE` and `SSL_CERT_DIR` name
//! others); the mesh's CA has no part in it. Must not know: what is told, retries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why an address is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// It is no absolute `http` or `https` address.
    #[error("{address:?} is not an address that begins with http:// or https://")]
    Address {
        /// As it was given.
        address: String,
    },
    /// A header can't have this value.
    #[error("the value of the authorization header has characters that a header can't have")]
    Authorization,
    /// Nobody could be trusted at the other end.
    #[error(
        "https needs the certificates of authorities, and this system has none that can be read ({reason}); install them (Debian: \
         ca-certificates), or name a file in SSL_CERT_FILE"
    )]
    NoRoots {
        /// What was wrong with those found.
        reason: String,
    },
}

/// A webhook; cheap to clone.
#[derive(Clone)]
pub struct WebhookClient {
    uri: Uri,
    authorization: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
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
        let of_no_use = || WebhookError::Address { address: address.to_owned() };
        let uri = address.parse::<Uri>().map_err(|_| of_no_use())?;
        let roots = match uri.scheme_str().filter(|_| uri.host().is_some_and(|host| !host.is_empty())) {
            Some("http") => RootCertStore::empty(),
            Some("https") => system_roots()?,
            _ => return Err(of_no_use()),
        };
        Self::trusting(uri, authorization, roots)
    }

    /// The same, where these authorities alone are trusted.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn trusting(uri: Uri, authorization: Option<&str>, roots: RootCertStore) -> Result<Self, WebhookError> {
        let value = |text: &str| {
            let mut value = HeaderValue::from_str(text).map_err(|_| WebhookError::Authorization)?;
            value.set_sensitive(true);
            Ok(value)
        };
        let authorization = authorization.map(value).transpose()?;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has what the protocol's versions need")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Self { uri, authorization, client: Client::builder(TokioExecutor::new()).build(connector) })
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
            Ok(Err(error)) => Err(with_causes(&error)),
            Err(_) => Err("it did not answer in time".into()),
        }
    }
}

/// Whom this system trusts; those that can't be read count only if there are no others.
fn system_roots() -> Result<RootCertStore, WebhookError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(WebhookError::NoRoots { reason: reasons.join("; ") });
    }
    Ok(roots)
}

/// The client's own error says only that it could not connect.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_can_not_be_told_is_refused_at_once() {
        for bad in ["", "movies", "/hook", "ftp://example.org", "http:///x"] {
            assert!(matches!(WebhookClient::new(bad, None), Err(WebhookError::Address { .. })), "{bad}");
        }
        assert!(matches!(WebhookClient::new("http://a/", Some("x\ny")), Err(WebhookError::Authorization)));
    }
}
