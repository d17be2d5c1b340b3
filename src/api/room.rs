//! Room for requests: so many at once, and so many bytes of bodies held at once; beyond that a client hears 503.
//!
//! Must not know: what requests do.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::types::ErrorCode;

/// Bodies are counted in pieces of this size.
const UNIT: usize = 1 << 10;
/// Bodies of the configured size that fit at once …
const BODIES: usize = 4;
/// … beside the copies for the replicas of so many.
const COPIED: usize = 2;

/// The member's room.
#[derive(Debug, Clone)]
pub struct Room {
    requests: Arc<Semaphore>,
    most: u32,
    units: Arc<Semaphore>,
    all_units: usize,
}

/// A request's place; its end gives back what the request holds.
#[derive(Debug)]
pub struct Place {
    _request: OwnedSemaphorePermit,
    bodies: Bodies,
}

/// An answer's body that keeps the request's place until it has been sent.
#[derive(Debug)]
pub struct Placed {
    /// The answer's own body.
    pub body: Body,
    /// The place, if the request has one.
    pub _place: Option<Place>,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The bytes that one request holds; cheap to clone.
#[derive(Debug, Clone)]
pub struct Bodies {
    units: Arc<Semaphore>,
    all_units: usize,
    held: Arc<Mutex<Vec<OwnedSemaphorePermit>>>,
}

impl Room {
    /// Room for so many requests, and for four bodies of the largest size and the copies of two of them, of which each
    /// document has `copies` (at least 64 MiB).
    pub fn new(requests: usize, max_body_bytes: usize, copies: usize) -> Self {
        let bodies = copies.saturating_mul(COPIED).saturating_add(BODIES);
        let units = (max_body_bytes.saturating_mul(bodies).max(64 << 20) / UNIT).min(Semaphore::MAX_PERMITS);
        let most = u32::try_from(requests).unwrap_or(u32::MAX);
        Self {
            requests: Arc::new(Semaphore::new(most as usize)),
            most,
            units: Arc::new(Semaphore::new(units)),
            all_units: units,
        }
    }

    /// Waits until no request is under way; none gets in after that.
    pub async fn empty(&self) {
        // The semaphore is never closed.
        if let Ok(all) = self.requests.acquire_many(self.most).await {
            all.forget();
        }
    }

    /// A place for one request.
    ///
    /// # Errors
    /// `too_many_search_requests`, Meilisearch's code for a server that has no room.
    pub fn enter(&self) -> Result<Place, ApiError> {
        let request = Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            let message = "Too many requests are under way at this member; try again, or ask another member.";
            ApiError::new(ErrorCode::TooManySearchRequests, message)
        })?;
        let (units, all_units) = (Arc::clone(&self.units), self.all_units);
        Ok(Place { _request: request, bodies: Bodies { units, all_units, held: Arc::default() } })
    }
}

impl Place {
    /// What the request's body is counted by.
    pub fn bodies(&self) -> Bodies {
        self.bodies.clone()
    }
}

impl Bodies {
    /// Counts `bytes` more as held by the request.
    ///
    /// # Errors
    /// `too_many_search_requests` if the bodies of all requests would be too large together, `payload_too_large` if this
    /// request would not even fit alone.
    pub fn hold(&self, bytes: usize) -> Result<(), ApiError> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_own: usize = held.iter().map(OwnedSemaphorePermit::num_permits).sum();
        if of_own.saturating_add(units as usize) > self.all_units {
            let message = format!(
                "The request takes more room than this member has for all requests ({} MiB), as documents and their copies; \
                 send fewer documents at once.",
                (self.all_units * UNIT) >> 20
            );
            return Err(ApiError::new(ErrorCode::PayloadTooLarge, message));
        }
        let permit = Arc::clone(&self.units).try_acquire_many_owned(units).map_err(|_| {
            let message = "The bodies of all requests under way at this member are too large together; try again.";
            ApiError::new(ErrorCode::TooManySearchRequests, message)
        })?;
        held.push(permit);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_held_is_free_after_it() {
        let room = Room::new(2, 64 << 20, 0);
        let (first, second) = (room.enter().unwrap(), room.enter().unwrap());
        assert!(room.enter().is_err());
        first.bodies().hold(250 << 20).unwrap();
        assert!(second.bodies().hold(10 << 20).is_err());
        drop(first);
        second.bodies().hold(10 << 20).unwrap();
        assert!(room.enter().is_ok());
    }

    #[test]
    fn what_would_never_fit_is_too_large_and_not_a_matter_of_time() {
        let room = Room::new(2, 64 << 20, 1);
        let (first, second) = (room.enter().unwrap(), room.enter().unwrap());
        let code = |r: Result<(), ApiError>| match r.unwrap_err().0 {
            crate::services::Failure::Mesh { code, .. } => code,
            other => panic!("{other:?}"),
        };
        first.bodies().hold(300 << 20).unwrap();
        assert_eq!(code(first.bodies().hold(100 << 20)), ErrorCode::PayloadTooLarge);
        assert_eq!(code(second.bodies().hold(100 << 20)), ErrorCode::TooManySearchRequests);
    }
}
