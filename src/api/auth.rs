//! Access: the master key as Bearer, the admin key for `/_miroir/*`. Without a master key the mesh is open, as a node is.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::routes::Api;
use crate::types::ErrorCode;

/// The digests of the keys; the keys themselves are not kept here.
#[derive(Clone, Default)]
pub struct Keys {
    master: Option<[u8; 32]>,
    admin: Option<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys {{ master: {}, admin: {} }}", self.master.is_some(), self.admin.is_some())
    }
}

impl Keys {
    /// Keys as configured; the admin key defaults to the master key.
    pub fn new(master: Option<&str>, admin: Option<&str>) -> Self {
        let digest = |key: &str| Sha256::digest(key).into();
        Self { master: master.map(digest), admin: admin.or(master).map(digest) }
    }

    fn wanted(&self, path: &str) -> Option<&[u8; 32]> {
        match path {
            "/" | "/health" => None,
            p if p.starts_with("/_miroir/") => self.admin.as_ref(),
            _ => self.master.as_ref(),
        }
    }

    /// Whether a request for `path` with this `Authorization` header may go on.
    ///
    /// # Errors
    /// 401 without a Bearer key, 403 with a wrong one.
    pub fn check(&self, path: &str, header: Option<&str>) -> Result<(), ApiError> {
        let Some(wanted) = self.wanted(path) else { return Ok(()) };
        // A scheme without a key is a wrong key, as on a node.
        let parts = header.map(|h| h.split_once(' ').unwrap_or((h, "")));
        let scheme = parts.filter(|(s, _)| s.eq_ignore_ascii_case("bearer"));
        let Some((_, key)) = scheme else {
            let message = "The Authorization header is missing. It must use the bearer authorization method.";
            return Err(ApiError::new(ErrorCode::MissingAuthorizationHeader, message));
        };
        // Digests are compared, so the time it takes says nothing about the key.
        let digest: [u8; 32] = Sha256::digest(key.trim()).into();
        if digest == *wanted {
            return Ok(());
        }
        Err(ApiError::new(ErrorCode::InvalidApiKey, "The provided API key is invalid."))
    }
}

/// The middleware.
pub async fn require_key(State(api): State<Api>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|h| h.to_str().ok());
    match api.keys.check(request.uri().path(), header) {
        Ok(()) => next.run(request).await,
        Err(e) => e.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Failure;

    fn status(keys: &Keys, path: &str, header: Option<&str>) -> u16 {
        match keys.check(path, header) {
            Ok(()) => 200,
            Err(ApiError(Failure::Mesh { code, .. })) => code.status(),
            Err(ApiError(Failure::Node { status, .. })) => status,
        }
    }

    #[test]
    fn each_path_wants_its_own_key() {
        let keys = Keys::new(Some("master"), Some("admin"));
        for (path, header, wanted) in [
            ("/health", None, 200),
            ("/", None, 200),
            ("/indexes", None, 401),
            ("/indexes", Some("Basic master"), 401),
            ("/indexes", Some("Bearer wrong"), 403),
            ("/indexes", Some("Bearer"), 403),
            ("/indexes", Some("Bearer admin"), 403),
            ("/indexes", Some("bearer master"), 200),
            ("/_miroir/topology", Some("Bearer master"), 403),
            ("/_miroir/topology", Some("Bearer admin"), 200),
        ] {
            assert_eq!(status(&keys, path, header), wanted, "{path} {header:?}");
        }
        assert_eq!(status(&Keys::new(Some("master"), None), "/_miroir/topology", Some("Bearer master")), 200);
        assert_eq!(status(&Keys::default(), "/indexes", None), 200);
    }
}
