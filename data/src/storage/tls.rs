//! HTTP connections with TLS where the address says `https`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::{CryptoProvider, ring};

/// How long a server may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Names the file of a private authority's certificates, which then stand for those of the system.
const ROOTS_VARIABLE: &str = "SSL_CERT_FILE";
/// How a certificate begins in a file of them.
const PEM_BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// What makes connections for an HTTP client.
pub type Connector = HttpsConnector<HttpConnector>;

/// Makes connections to `http` and `https` addresses. Certificates are held against the roots of the system,
/// or those in the file that the variable `SSL_CERT_FILE` names; on a system without any, against Mozilla's.
///
/// # Errors
/// What keeps TLS from starting.
pub fn connector() -> Result<Connector, String> {
    static CONNECTOR: OnceLock<Result<Connector, String>> = OnceLock::new();
    CONNECTOR.get_or_init(make).clone()
}

fn make() -> Result<Connector, String> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIME));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    let private = std::env::var_os(ROOTS_VARIABLE);
    if let Some(file) = &private {
        let unusable =
            |reason: &str| Err(format!("{ROOTS_VARIABLE} is {}: {reason}", file.display()));
        match std::fs::read(file) {
            Err(error) => return unusable(&error.to_string()),
            Ok(text) if !text.windows(PEM_BEGIN.len()).any(|part| part == PEM_BEGIN) => {
                return unusable("expected certificates in PEM form");
            }
            Ok(_) => {}
        }
    }
    let provider: Arc<CryptoProvider> = ring::default_provider().into();
    let builder = HttpsConnectorBuilder::new();
    let builder = match builder.with_provider_and_native_roots(Arc::clone(&provider)) {
        Ok(builder) => builder,
        Err(error) => {
            if let Some(file) = private {
                return Err(format!("{ROOTS_VARIABLE} is {file:?}: {error}"));
            }
            HttpsConnectorBuilder::new()
                .with_provider_and_webpki_roots(provider)
                .map_err(|error| error.to_string())?
        }
    };
    Ok(builder.https_or_http().enable_http1().wrap_connector(connector))
}
