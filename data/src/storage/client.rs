//! The requests of `object_store`, sent by the HTTP client that the server and the judge use too.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{AUTHORIZATION, LOCATION};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt, StreamBody};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};

use super::tls;

/// How long a server may take to answer, and to send more of an answer.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Most bytes of an answer that is no object: a page of a listing, or an error.
const LARGEST_PAGE: usize = 64 << 20;
/// Redirections that are followed.
const REDIRECTIONS: usize = 5;

/// Makes the clients of a store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connector {
    /// Web servers send readers on; the addresses of buckets are signed and stay as they are.
    pub follow_redirections: bool,
}

impl object_store::client::HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let connector = tls::connector().map_err(|reason| object_store::Error::Generic {
            store: "TLS",
            source: reason.into(),
        })?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Ok(HttpClient::new(Service { client, follow_redirections: self.follow_redirections }))
    }
}

#[derive(Debug)]
struct Service {
    client: Client<tls::Connector, HttpRequestBody>,
    follow_redirections: bool,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Service {
    fn call<'own, 'answer>(&'own self, request: HttpRequest) -> Answer<'answer>
    where
        'own: 'answer,
        Self: 'answer,
    {
        Box::pin(self.answer(request))
    }
}

impl Service {
    async fn answer(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let follow = self.follow_redirections
            && [Method::GET, Method::HEAD].contains(request.method())
            && request.body().content_length() == 0;
        for _ in 0..REDIRECTIONS {
            let (uri, method) = (request.uri().clone(), request.method().clone());
            let headers = request.headers().clone();
            let answer = self.send(request).await?;
            let target = follow.then(|| redirection(&uri, answer.status(), answer.headers()));
            let Some(target) = target.transpose()?.flatten() else {
                return Ok(answer);
            };
            let mut next = http::Request::new(HttpRequestBody::empty());
            *next.method_mut() = method;
            *next.headers_mut() = headers;
            if target.authority() != uri.authority() {
                next.headers_mut().remove(AUTHORIZATION);
            }
            *next.uri_mut() = target;
            request = next;
        }
        Err(refused(format!("more than {REDIRECTIONS} redirections")))
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_page = request.method() == Method::GET && request.uri().query().is_some();
        let address = request.uri().clone();
        let answer = tokio::time::timeout(ANSWER_TIME, self.client.request(request));
        let answer = answer.await.map_err(|_| silent())?.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { kind_of(&error) };
            HttpError::new(kind, error)
        });
        match &answer {
            Ok(answer) if is_passing(answer.status()) => {
                tracing::warn!("{}: {}; it is asked again", shown(&address), answer.status());
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("{}: {}; it is asked again", shown(&address), causes(error));
            }
        }
        let answer = answer?;
        let most = if is_page || !answer.status().is_success() { LARGEST_PAGE } else { usize::MAX };
        let (parts, body) = answer.into_parts();
        let frames = stream::try_unfold((body, most), |(mut body, most)| async move {
            let frame = tokio::time::timeout(ANSWER_TIME, body.frame()).await;
            let Some(frame) = frame.map_err(|_| silent())? else { return Ok(None) };
            let frame = frame.map_err(|error| HttpError::new(kind_of(&error), error))?;
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let left = most.checked_sub(bytes);
            let left = left.ok_or_else(|| refused("an answer longer than 64 MiB".to_owned()))?;
            Ok(Some((frame, (body, left))))
        });
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(StreamBody::new(frames))))
    }
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// An address without what follows `?`, which may be a signature.
fn shown(address: &Uri) -> String {
    let host = address.authority().map_or("", |authority| authority.as_str());
    format!("{}://{host}{}", address.scheme_str().unwrap_or("http"), address.path())
}

/// Where an answer sends the reader.
fn redirection(
    from: &Uri,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Option<Uri>, HttpError> {
    let known = [301, 302, 303, 307, 308].contains(&status.as_u16());
    let Some(target) = headers.get(LOCATION).filter(|_| known) else { return Ok(None) };
    let text = target.to_str().unwrap_or_default();
    let base = url::Url::parse(&from.to_string());
    let joined = base.and_then(|base| base.join(text)).ok();
    let uri: Option<Uri> = joined.and_then(|url| url.as_str().parse().ok());
    let uri = uri.ok_or_else(|| refused(format!("redirected to {text:?}, which is no address")))?;
    match (from.scheme_str(), uri.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(Some(uri)),
        _ => Err(refused(format!("redirected to {}, away from https", shown(&uri)))),
    }
}

fn refused(reason: String) -> HttpError {
    HttpError::new(HttpErrorKind::Decode, std::io::Error::other(reason))
}

fn silent() -> HttpError {
    let seconds = ANSWER_TIME.as_secs();
    let error = std::io::Error::other(format!("nothing came for {seconds} s"));
    HttpError::new(HttpErrorKind::Timeout, error)
}

fn kind_of(error: &(dyn Error + 'static)) -> HttpErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_closed() || error.is_incomplete_message() || error.is_canceled())
        {
            return HttpErrorKind::Request;
        }
        if error.downcast_ref::<std::io::Error>().is_some() {
            return HttpErrorKind::Interrupted;
        }
        cause = error.source();
    }
    HttpErrorKind::Unknown
}

/// An error and what caused it, each once.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
