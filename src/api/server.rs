//! Accepts connections: bounded in number, bounded in the patience for a request's head, drained on shutdown.
//!
//! Must not know: what is served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::rt::{Phase, Shutdown};

/// A client that takes nothing of its answer for so long is cut.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Most connections at once.
const CONNECTIONS_MAX: usize = 4_096;
/// Pause after a failed accept: out of files, most likely, and trying at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the address.
///
/// # Errors
/// The system's, with the address and the config key in its text.
pub async fn bind(address: SocketAddr, key: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("can't listen on {address} ({key}): {e}")))
}

/// How many connections are taken where so many files may be open: a client's request may need one to the node as well, so
/// half of them; the other half is also for what peers ask the node, the mesh and the stores.
pub fn connections(files: usize) -> usize {
    CONNECTIONS_MAX.min(files / 2)
}

/// What a server allows itself and its clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more are closed.
    pub connections: usize,
    /// For a request's head; a client that takes longer is cut.
    pub patience: Duration,
    /// For the requests that are under way when the process drains.
    pub drain: Duration,
}

/// Serves until the process drains; then the requests under way are finished.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown, limits: Limits) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.reached(Phase::Draining) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(limit = limits.connections, "too many connections; one was closed");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone at once");
            continue;
        }
        let service = TowerToHyperService::new(router.clone());
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.patience)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the time to drain was over");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::names::Names;
    use crate::rt::Shutdown;

    #[test]
    fn connections_leave_files_for_the_node() {
        assert_eq!([1_024, 4_096, 1 << 20, usize::MAX].map(connections), [512, 2_048, 4_096, 4_096]);
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_closed() {
        let listener = bind(([127, 0, 0, 1], 0).into(), "test").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (_trigger, shutdown) = Shutdown::new();
        let limits = Limits { connections: 1, patience: WRITE_TIMEOUT, drain: WRITE_TIMEOUT };
        tokio::spawn(serve(listener, Router::new(), shutdown, limits));
        let names = Names::from_system();
        let mut first = names.connect(&address).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), b'H');
        let mut second = names.connect(&address).await.unwrap();
        assert_eq!(second.read(&mut [0]).await.unwrap_or_default(), 0, "it was closed");
    }
}
