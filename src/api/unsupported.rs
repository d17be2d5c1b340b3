//! Meilisearch's routes that the mesh has not: answered by 501 that names them, so that nobody takes them for a typo.

use axum::Router;
use axum::routing::MethodRouter;
use http::Method;

use super::error::ApiError;
use super::routes::Api;
use crate::types::ErrorCode;

/// Path, and its methods in Meilisearch.
pub const ROUTES: &[(&str, &[Method])] = &[
    ("/swap-indexes", &[Method::POST]),
    ("/indexes/{uid}/similar", &[Method::GET, Method::POST]),
    ("/indexes/{uid}/fields", &[Method::POST]),
    ("/indexes/{uid}/compact", &[Method::POST]),
    ("/indexes/{uid}/settings/chat", &[Method::GET, Method::PATCH, Method::DELETE]),
    ("/indexes/{uid}/settings/foreign-keys", &[Method::GET, Method::PUT, Method::DELETE]),
    ("/tasks/compact", &[Method::POST]),
    ("/tasks/{uid}/documents", &[Method::GET]),
    ("/keys", &[Method::GET, Method::POST]),
    ("/keys/{key}", &[Method::GET, Method::PATCH, Method::DELETE]),
    ("/experimental-features", &[Method::GET, Method::PATCH]),
    ("/dumps", &[Method::POST]),
    ("/snapshots", &[Method::POST]),
    ("/export", &[Method::POST]),
    ("/metrics", &[Method::GET]),
    ("/logs/stream", &[Method::POST, Method::DELETE]),
    ("/logs/stderr", &[Method::POST]),
    ("/network", &[Method::GET, Method::PATCH]),
    ("/network/control", &[Method::POST]),
    ("/webhooks", &[Method::GET, Method::POST]),
    ("/webhooks/{uuid}", &[Method::GET, Method::PATCH, Method::DELETE]),
    ("/dynamic-search-rules", &[Method::POST, Method::DELETE]),
    ("/dynamic-search-rules/{uid}", &[Method::GET, Method::PATCH, Method::DELETE]),
    ("/chats", &[Method::GET]),
    ("/chats/{workspace}", &[Method::GET, Method::DELETE]),
    ("/chats/{workspace}/settings", &[Method::GET, Method::PATCH, Method::DELETE]),
    ("/chats/{workspace}/chat/completions", &[Method::POST]),
    ("/render-template", &[Method::POST]),
];

/// Adds the routes.
pub fn add(mut router: Router<Api>) -> Router<Api> {
    for (path, methods) in ROUTES {
        let mut handlers = MethodRouter::new();
        for method in *methods {
            let filter = method.clone().try_into().expect("every listed method has a filter");
            let refusal = refusal(method, path);
            handlers = handlers.on(filter, move || std::future::ready(refusal.clone()));
        }
        router = router.route(path, handlers);
    }
    router
}

fn refusal(method: &Method, path: &str) -> ApiError {
    let message = format!("The route {method} {path} is not supported by this version of miroir.");
    ApiError::new(ErrorCode::MiroirNotSupported, message)
}
