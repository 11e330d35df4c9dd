//! Stores: a client for each bucket or server, made once in a process, and what their errors mean.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use tokio::runtime::Runtime;

use super::client::{Connector, causes};
use super::location::{Location, Scheme};
use crate::error::{DataError, Result};

/// How often a request is sent again, unless the variable [`RETRIES_VARIABLE`] says.
const RETRIES: usize = 10;
const RETRIES_VARIABLE: &str = "ALTIPLANO_STORAGE_RETRIES";
/// Characters of an error that a message repeats.
const QUOTED_CHARS: usize = 400;

/// Variables any of which says that S3's requests are signed. The others of `object_store` are settings.
const AWS_CREDENTIALS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
    "AWS_SKIP_SIGNATURE",
];
const GOOGLE_CREDENTIALS: &[&str] = &[
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "SERVICE_ACCOUNT",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_SKIP_SIGNATURE",
];
const AZURE_CREDENTIALS: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_CREDENTIAL_TYPE",
    "AZURE_STORAGE_USE_EMULATOR",
    "AZURE_USE_EMULATOR",
    "AZURE_USE_AZURE_CLI",
    "AZURE_SKIP_SIGNATURE",
];

/// A bucket or a web server.
#[derive(Debug)]
pub(super) struct Store {
    pub client: Box<dyn ObjectStore>,
    scheme: Scheme,
    /// Requests are not signed, since no credentials were found.
    anonymous: bool,
}

impl Store {
    /// The store of `location`; what is wrong with it, or its settings, otherwise.
    pub fn of(location: &Location) -> std::result::Result<Arc<Self>, String> {
        type Stores = HashMap<(Scheme, String), Arc<Store>>;
        static STORES: OnceLock<Mutex<Stores>> = OnceLock::new();
        let stores = STORES.get_or_init(Mutex::default);
        let mut stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (location.scheme, location.host.clone());
        if let Some(store) = stores.get(&key) {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(Self::new(location)?);
        stores.insert(key, Arc::clone(&store));
        Ok(store)
    }

    fn new(location: &Location) -> std::result::Result<Self, String> {
        let Location { scheme, host, .. } = location;
        let retry = RetryConfig { max_retries: retries()?, ..RetryConfig::default() };
        let options = ClientOptions::new().with_allow_http(true);
        let connector = Connector { follow_redirections: !scheme.is_bucket() };
        // The builders have these methods in common, and no trait.
        macro_rules! set_up {
            ($builder:expr) => {
                $builder
                    .with_client_options(options)
                    .with_retry(retry)
                    .with_http_connector(connector)
            };
        }
        macro_rules! bucket {
            ($builder:expr, $anonymous:expr) => {{
                let (mut builder, anonymous) = (set_up!($builder), $anonymous);
                if anonymous {
                    builder = builder.with_skip_signature(true);
                }
                (builder.build().map(|store| Box::new(store) as _), anonymous)
            }};
        }
        let (client, anonymous): (object_store::Result<Box<dyn ObjectStore>>, bool) = match scheme {
            Scheme::S3 => bucket!(
                AmazonS3Builder::from_env().with_bucket_name(host),
                is_none_set(AWS_CREDENTIALS)
            ),
            Scheme::Gs => {
                // What `gcloud auth application-default login` leaves counts as credentials too.
                let of_user = std::env::home_dir().is_some_and(|home| {
                    home.join(".config/gcloud/application_default_credentials.json").is_file()
                });
                bucket!(
                    GoogleCloudStorageBuilder::from_env().with_bucket_name(host),
                    is_none_set(GOOGLE_CREDENTIALS) && !of_user
                )
            }
            Scheme::Az => bucket!(
                MicrosoftAzureBuilder::from_env().with_container_name(host),
                is_none_set(AZURE_CREDENTIALS)
            ),
            Scheme::Https | Scheme::Http => {
                let builder = HttpBuilder::new().with_url(format!("{}://{host}", scheme.name()));
                (set_up!(builder).build().map(|store| Box::new(store) as _), false)
            }
        };
        let client = client.map_err(|error| {
            format!("cannot be asked: {}; check the variables {}*", causes(&error), scheme.prefix())
        })?;
        Ok(Self { client, scheme: *scheme, anonymous })
    }

    /// What an error means and what to do about it.
    pub fn explain(&self, error: &object_store::Error) -> String {
        use object_store::Error;
        let told: String = causes(error).chars().take(QUOTED_CHARS).collect();
        let is_bucket = self.scheme.is_bucket();
        if told.contains("NoSuchBucket") {
            return "there is no such bucket; check its name, AWS_REGION and AWS_ENDPOINT_URL"
                .into();
        }
        match error {
            Error::NotFound { .. } if is_bucket => {
                "there is no such object or bucket (404); check the \
                                                    address"
                    .into()
            }
            Error::NotFound { .. } => "there is no such file (404); check the address".into(),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => self.denied(&told),
            _ if told.contains("403 Forbidden") || told.contains("401 Unauthorized") => {
                self.denied(&told)
            }
            _ => format!("{told}; check the address and the network, and run again"),
        }
    }

    fn denied(&self, told: &str) -> String {
        let prefix = self.scheme.prefix();
        match (self.scheme.is_bucket(), self.anonymous) {
            (false, _) => format!("the server does not allow it ({told}); check the address"),
            (true, true) => format!(
                "access denied ({told}); no credentials were found in the environment, so requests \
                 are not signed: set the variables {prefix}*, for example {}",
                self.scheme.example()
            ),
            (true, false) => format!(
                "access denied ({told}); check that the credentials in the variables {prefix}* may \
                 do this"
            ),
        }
    }
}

impl Scheme {
    /// How the variables of its settings begin.
    fn prefix(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Gs => "GOOGLE_",
            Self::Az => "AZURE_",
            Self::Https | Self::Http => "SSL_CERT_",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Gs => "GOOGLE_SERVICE_ACCOUNT_PATH",
            Self::Az => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
            _ => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        }
    }
}

fn is_none_set(variables: &[&str]) -> bool {
    !variables.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// How often a request is sent again before it fails.
pub(super) fn retries() -> std::result::Result<usize, String> {
    match std::env::var(RETRIES_VARIABLE) {
        Err(_) => Ok(RETRIES),
        Ok(text) => text.parse().ok().filter(|&retries| retries <= 1000).ok_or_else(|| {
            format!("cannot be asked: {RETRIES_VARIABLE} is {text:?}, expected 0 to 1000")
        }),
    }
}

/// Where requests run, beside the threads that compute.
fn runtime(address: &Path) -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("storage")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
    });
    runtime.as_ref().map_err(|error| DataError::storage(address, format!("no threads: {error}")))
}

/// Waits for `work`, which is about `address`.
pub(super) fn wait<T: Send + 'static>(
    address: &Path,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    spawn(address, async move {
        let _ = sender.send(work.await);
    })?;
    receiver.recv().map_err(|_| DataError::storage(address, "the request was dropped; run again"))
}

/// Starts `work`, which is about `address`.
pub(super) fn spawn(
    address: &Path,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<tokio::task::JoinHandle<()>> {
    Ok(runtime(address)?.spawn(work))
}
