//! Connections: accepted within bounds, served, and ended in an orderly way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::error::{Result, ServeError};

/// Connections at a time; more wait in the system's queue.
const MOST_CONNECTIONS: usize = 4096;
/// How long a client may take to send the headers of a request.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// Headers of a request.
const MOST_HEADERS: usize = 100;
/// Bytes of them, and of what is read of a body at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// A socket that is listened on.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on an address.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        let failed = |source| ServeError::Listen { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// The address, with the port that the system chose where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections until `end` becomes true, then waits until those that are open have
    /// answered.
    pub async fn serve(self, routes: Router, mut end: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let connections = Arc::clone(&room);
        let accept = async {
            loop {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
                match self.socket.accept().await {
                    Ok((stream, _)) => {
                        let (routes, end) = (routes.clone(), end.clone());
                        tokio::spawn(async move {
                            serve_connection(stream, routes, end).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        // No file descriptors are left, or the client is gone already.
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        let mut ending = end.clone();
        tokio::select! {
            () = accept => {}
            _ = ending.wait_for(|end| *end) => {}
        }
        let _ = end.wait_for(|end| *end).await;
        // Every connection has given its permit back.
        let _ = connections.acquire_many(MOST_CONNECTIONS as u32).await;
    }
}

async fn serve_connection(stream: TcpStream, routes: Router, mut end: watch::Receiver<bool>) {
    // Events are small and must not wait for others.
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MOST_HEADERS)
        .max_buf_size(BUFFER_BYTES);
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(connection);
    let ended = async move { drop(end.wait_for(|end| *end).await) };
    let served = tokio::select! {
        served = &mut connection => served,
        () = ended => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(error, "a connection ended early");
    }
}
