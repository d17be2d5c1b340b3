//! The table of routes, and what every request goes through: trace id, metrics, access, CORS.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use http::{HeaderName, Method, Uri};
use tower::ServiceExt;
use tower_http::cors::CorsLayer;
use tracing::Instrument;
use uuid::Uuid;

use super::auth::{Keys, require_key};
use super::error::{ApiError, mark};
use super::room::{Placed, Room};
use super::service::{DEGRADED, in_service};
use super::session::{SESSION, is_read, session};
use super::{
    admin, aliases, documents, health, indexes, leases, mesh, operations, search, settings, shards, tasks, unsupported,
};
use crate::services::aliases::Aliases;
use crate::services::cluster::Cluster;
use crate::services::documents::Documents;
use crate::services::indexes::Indexes;
use crate::services::leases::LeaseHandle;
use crate::services::mesh::MeshService;
use crate::services::operations::OperationsHandle;
use crate::services::reads::Reads;
use crate::services::search::Searches;
use crate::services::settings::Settings;
use crate::services::shards::Shards;
use crate::services::stats::Stats;
use crate::services::tasks::Tasks;
use crate::telemetry::metrics::{HttpGuard, Metrics};
use crate::types::ErrorCode;
use crate::types::TraceId;

/// The header of answers with the id that stands in every member's log of the request.
const REQUEST_ID: &str = "x-request-id";
/// As long as a node lets browsers keep what they were told.
const CORS_MAX_AGE: Duration = Duration::from_secs(86_400);

/// Bounds of the API.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// Largest body, after decompression, in bytes.
    pub max_body_bytes: usize,
    /// A body of which nothing comes for so long is given up.
    pub body_timeout: Duration,
}

/// What handlers work with.
#[derive(Debug)]
pub struct Parts {
    /// The mesh's members.
    pub cluster: Cluster,
    /// How the mesh is made, and who belongs to it.
    pub mesh: MeshService,
    /// Who leads what.
    pub leases: LeaseHandle,
    /// What is being led.
    pub operations: OperationsHandle,
    /// Names that stand for an index.
    pub aliases: Aliases,
    /// Indexes.
    pub indexes: Indexes,
    /// Adding and deleting documents.
    pub documents: Documents,
    /// Reading documents.
    pub reads: Reads,
    /// Searches.
    pub searches: Searches,
    /// Settings.
    pub settings: Settings,
    /// Who holds which shard.
    pub shards: Shards,
    /// Statistics.
    pub stats: Stats,
    /// Tasks.
    pub tasks: Tasks,
    /// Who may do what.
    pub keys: Keys,
    /// Bounds.
    pub options: ApiOptions,
    /// Room for requests.
    pub room: Room,
    /// Series.
    pub metrics: Arc<Metrics>,
}

/// The API's state; cheap to clone.
#[derive(Debug, Clone)]
pub struct Api(Arc<Parts>);

impl Api {
    /// The state over its parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for Api {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// All routes.
pub fn router(api: Api) -> Router {
    let settings_all = get(settings::all).patch(settings::all).delete(settings::all);
    let settings_one = get(settings::one).put(settings::one).patch(settings::one).delete(settings::one);
    let all_documents = get(documents::list).post(documents::add).put(documents::add).delete(documents::delete_all);
    let routes = Router::new()
        .route("/", get(health::root))
        .route("/health", get(health::health))
        .route("/version", get(health::version))
        .route("/stats", get(health::stats))
        .route("/indexes", get(indexes::list).post(indexes::create))
        .route("/indexes/{uid}", get(indexes::get).patch(indexes::update).delete(indexes::delete))
        .route("/indexes/{uid}/stats", get(indexes::stats))
        .route("/indexes/{uid}/documents", all_documents)
        .route("/indexes/{uid}/documents/fetch", post(documents::fetch))
        .route("/indexes/{uid}/documents/delete-batch", post(documents::delete_batch))
        .route("/indexes/{uid}/documents/delete", post(documents::delete_by_filter))
        .route("/indexes/{uid}/documents/edit", post(documents::edit))
        .route("/indexes/{uid}/documents/{id}", get(documents::get).delete(documents::delete_one))
        .route("/indexes/{uid}/settings", settings_all)
        .route("/indexes/{uid}/settings/{sub}", settings_one)
        .route("/indexes/{uid}/search", get(search::by_query).post(search::by_body))
        .route("/indexes/{uid}/facet-search", post(search::facet_search))
        .route("/multi-search", post(search::multi))
        .route("/tasks", get(tasks::list).delete(tasks::delete))
        .route("/tasks/cancel", post(tasks::cancel))
        .route("/tasks/{uid}", get(tasks::get))
        .route("/batches", get(tasks::batches))
        .route("/batches/{uid}", get(tasks::batch))
        .route("/_miroir/topology", get(admin::topology))
        .route("/_miroir/leases", get(leases::list))
        .route("/_miroir/indexes", get(shards::list))
        .route("/_miroir/indexes/{uid}", get(shards::get))
        .route("/_miroir/indexes/{uid}/shards/{shard}/elect", post(shards::elect))
        .route("/_miroir/operations", get(operations::list))
        .route("/_miroir/operations/{id}", get(operations::get))
        .route("/_miroir/operations/{id}/{wish}", post(operations::change))
        .route("/_miroir/aliases", get(aliases::list).post(aliases::create))
        .route("/_miroir/aliases/{name}", get(aliases::get).put(aliases::put).delete(aliases::delete))
        .route("/_miroir/mesh", get(mesh::status))
        .route("/_miroir/mesh/init", post(mesh::init))
        .route("/_miroir/mesh/recover", post(mesh::recover));
    let routes = unsupported::add(routes)
        .route_layer(from_fn_with_state(api.clone(), session))
        .route_layer(from_fn_with_state(api.clone(), in_service))
        .route_layer(from_fn_with_state(api.clone(), require_key))
        .layer(middleware::from_fn_with_state(api.clone(), observe))
        .layer(cors())
        .with_state(api);
    // As on a node, several slashes are one, and one at the end is none.
    let again = routes.clone();
    routes.fallback(move |mut request: Request| {
        let routes = again.clone();
        async move {
            if let Some(uri) = with_single_slashes(request.uri()) {
                *request.uri_mut() = uri;
            }
            routes.oneshot(request).await
        }
    })
}

/// The address with its path written plainly, unless it is so already.
fn with_single_slashes(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if path == "/" || !(path.contains("//") || path.ends_with('/')) {
        return None;
    }
    let mut plain = String::with_capacity(uri.path_and_query()?.as_str().len());
    for step in path.split('/').filter(|step| !step.is_empty()) {
        plain.push('/');
        plain.push_str(step);
    }
    if plain.is_empty() {
        plain.push('/');
    }
    if let Some(query) = uri.query() {
        plain.push('?');
        plain.push_str(query);
    }
    plain.parse().ok()
}

/// Pages of any origin may ask, as on a node, and see what is marked.
fn cors() -> CorsLayer {
    CorsLayer::very_permissive()
        .allow_credentials(false)
        .allow_origin(tower_http::cors::Any)
        .expose_headers([
            HeaderName::from_static(DEGRADED),
            HeaderName::from_static(SESSION),
            HeaderName::from_static(REQUEST_ID),
        ])
        .max_age(CORS_MAX_AGE)
}

/// Whether the request may change something.
fn writes(method: &Method, route: &str) -> bool {
    match *method {
        Method::PUT | Method::PATCH | Method::DELETE => true,
        Method::POST => !is_read(method, route),
        _ => false,
    }
}

/// Gives each request an id that every member's log shows, and counts it.
async fn observe(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let trace = TraceId(Uuid::new_v4().as_u128());
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().to_owned(),
        None => "other".to_owned(),
    };
    let guard = api.metrics.http_request(&route, request.method().as_str());
    let span = tracing::info_span!("request", id = %trace, method = %request.method(), path = request.uri().path());
    let path = request.uri().path();
    // Asked by those who watch, also when there is no room.
    let watching = path == "/" || path == "/health";
    let place = match api.room.enter() {
        Ok(place) => Some(place),
        Err(_) if watching => None,
        Err(e) => return counted(guard, e.into_response()),
    };
    request.extensions_mut().insert(trace);
    if let Some(place) = &place {
        request.extensions_mut().insert(place.bodies());
    }
    let writes = writes(request.method(), &route);
    let began = Instant::now();
    let answer = async move {
        let response = next.run(request).await;
        let mut response = counted(guard, response);
        let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis());
        if status >= 500 {
            tracing::warn!(status, ms, "a request failed");
        } else {
            tracing::debug!(status, ms, "answered");
        }
        mark(response.headers_mut(), REQUEST_ID, &trace.to_string());
        // The place is given back when the answer has been sent.
        response.map(|body| Body::new(Placed { body, _place: place }))
    }
    .instrument(span);
    if !writes {
        return answer.await;
    }
    // A write runs to its end even if the client hangs up: half of one would be left behind.
    tokio::spawn(answer).await.unwrap_or_else(|e| {
        let message = format!("the request failed inside: {e}");
        ApiError::new(ErrorCode::Internal, message).into_response()
    })
}

fn counted(guard: HttpGuard, response: Response) -> Response {
    guard.finish(response.status().as_u16());
    response
}
