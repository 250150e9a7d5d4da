//! Requests to the hub: the files of a repository, the metadata of a file, its bytes.
//!
//! The addresses are those of <https://huggingface.co/docs/hub/api>; the headers that describe a file are those
//! that `get_hf_file_metadata` of huggingface_hub reads.

use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use luthier_core::hub::{HubModel, is_plain_file_name};
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::choice::can_be_fetched;
use super::credentials::{Endpoint, Token, is_https};
use super::error::HubError;

/// How long a connection may take, and a server may be silent.
const CONNECT: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_mins(1);

/// Largest description of a repository.
const LARGEST_LISTING: u64 = 64 << 20;

/// Redirects followed before a file is given up.
const REDIRECTS: usize = 8;

/// A hub, with the token to use.
pub struct Hub {
    endpoint: Endpoint,
    token: Option<Token>,
    api: Api,
    agent: Agent,
}

/// The files of a repository at a commit.
pub(super) struct Listing {
    /// The commit; fit for a path.
    pub commit: String,
    /// The files that can be fetched: names that are fit for a path, none in folders.
    pub files: Vec<String>,
}

/// What the hub says about a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub name: String,
    /// Where it is asked for.
    pub address: Uri,
    /// The name of its content; fit for a path. Of files in large-file storage it is the SHA-256.
    pub etag: String,
    pub bytes: u64,
}

/// Why a read of a file's bytes ended.
pub(super) enum Interruption {
    /// The next attempt may succeed.
    Passing(String),
    /// Another attempt would fail too.
    Lasting(HubError),
}

impl Hub {
    /// A hub at `endpoint`, asked with `token`.
    pub fn new(endpoint: Endpoint, token: Option<Token>) -> Result<Self, HubError> {
        // The cache is ours; here it only keeps hf-hub from looking for a token or a home folder by itself.
        let api = ApiBuilder::from_cache(Cache::new("/nonexistent/hub".into()))
            .with_endpoint(endpoint.to_string())
            .with_token(token.as_ref().map(|token| token.expose().to_owned()))
            .with_progress(false)
            .with_user_agent("luthier", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| unreachable(&endpoint, error.to_string()))?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("luthier/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build()
            .new_agent();
        Ok(Self { endpoint, token, api, agent })
    }

    /// The files of `model` at its revision.
    pub(super) fn list(&self, model: &HubModel) -> Result<Listing, HubError> {
        let repository = repository(model, model.revision());
        let mut response = self
            .api
            .repo(repository)
            .info_request()
            .config()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build()
            .call()
            .map_err(|error| unreachable(&self.endpoint, reason(&error)))?;
        if !response.status().is_success() {
            return Err(self.refusal(model, None, &response));
        }
        let info = response.body_mut().with_config().limit(LARGEST_LISTING).read_json::<RepoInfo>();
        let RepoInfo { siblings, sha } = info.map_err(|error| match error {
            ureq::Error::Json(_) => self.no_hub("its description of the model cannot be parsed"),
            error => unreachable(&self.endpoint, reason(&error)),
        })?;
        if !is_plain_file_name(&sha) || model.commit().is_some_and(|asked| asked != sha) {
            return Err(self.no_hub("it names no commit, or not the one asked for"));
        }
        let names = siblings.into_iter().map(|sibling| sibling.rfilename);
        Ok(Listing { commit: sha, files: names.filter(|name| can_be_fetched(name)).collect() })
    }

    /// What the hub says about a file of `model` at a commit.
    pub(super) fn describe(
        &self,
        model: &HubModel,
        commit: &str,
        name: &str,
    ) -> Result<RemoteFile, HubError> {
        let written = self.api.repo(repository(model, commit)).url(name);
        let start: Uri =
            written.parse().map_err(|_| self.no_hub("its address and the file's do not form a valid one"))?;
        let mut address = start.clone();
        let (mut etag, mut bytes) = (None, None);
        for _ in 0..=REDIRECTS {
            // One byte: not every server answers HEAD requests.
            let response = self
                .send(&address, "bytes=0-0")
                .map_err(|error| unreachable(&self.endpoint, reason(&error)))?;
            let headers = response.headers();
            etag = etag.or_else(|| etag_of(headers, "x-linked-etag"));
            bytes = bytes.or_else(|| number(headers, "x-linked-size"));
            let next = self.redirected(&address, &response)?;
            // After a redirect, the other server may use another ETag.
            if next.as_ref().is_none_or(|next| !self.endpoint.owns(next)) {
                etag = etag.or_else(|| etag_of(headers, "etag"));
            }
            if next.is_none() {
                if !matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
                    return Err(self.refusal(model, Some(name), &response));
                }
                bytes = bytes.or_else(|| length(&response));
            }
            if let (Some(etag), Some(bytes)) = (&etag, bytes) {
                if !is_plain_file_name(etag) {
                    return Err(self.no_hub(&format!("the name of {name}'s content cannot be a file's")));
                }
                return Ok(RemoteFile { name: name.to_owned(), address: start, etag: etag.clone(), bytes });
            }
            let Some(next) = next else {
                return Err(self.no_hub(&format!("the response has no Content-Length or ETag for {name}")));
            };
            address = next;
        }
        Err(self.no_hub(&format!("it redirects in circles for {name}")))
    }

    /// The bytes of a file from `start` on, or from its beginning where the server does not support ranges; with the
    /// offset at which they begin.
    pub(super) fn read(
        &self,
        model: &HubModel,
        file: &RemoteFile,
        start: u64,
    ) -> Result<(Body, u64), Interruption> {
        let mut address = file.address.clone();
        for _ in 0..=REDIRECTS {
            let response = self
                .send(&address, &format!("bytes={start}-"))
                .map_err(|error| Interruption::Passing(reason(&error)))?;
            if let Some(next) = self.redirected(&address, &response).map_err(Interruption::Lasting)? {
                address = next;
                continue;
            }
            let status = response.status();
            return match status {
                StatusCode::OK => Ok((response.into_body(), 0)),
                StatusCode::PARTIAL_CONTENT if range(response.headers()) == Some((start, file.bytes)) => {
                    Ok((response.into_body(), start))
                }
                StatusCode::PARTIAL_CONTENT => Err(Interruption::Lasting(
                    self.no_hub(&format!("it sends a part of {} that was not asked for", file.name)),
                )),
                StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                    Err(Interruption::Passing(format!("the server answers with status {}", status.as_u16())))
                }
                _ if status.is_server_error() => {
                    Err(Interruption::Passing(format!("the server answers with status {}", status.as_u16())))
                }
                _ => Err(Interruption::Lasting(self.refusal(model, Some(&file.name), &response))),
            };
        }
        Err(Interruption::Lasting(self.no_hub(&format!("it redirects in circles for {}", file.name))))
    }

    fn send(&self, address: &Uri, range: &str) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(address).header(header::RANGE, range);
        if let Some(token) = self.token.as_ref().filter(|_| self.endpoint.owns(address)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        request.call()
    }

    /// Where a response redirects to, if it does. An encrypted connection redirects only to another one.
    fn redirected(&self, address: &Uri, response: &Response<Body>) -> Result<Option<Uri>, HubError> {
        if !response.status().is_redirection() {
            return Ok(None);
        }
        let location = text(response.headers(), "location").unwrap_or_default();
        let next = if location.starts_with('/') && !location.starts_with("//") {
            let mut parts = address.clone().into_parts();
            parts.path_and_query = location.parse().ok();
            Uri::from_parts(parts).ok()
        } else {
            location.parse().ok()
        };
        match next.filter(|next| next.host().is_some() && (is_https(next) || !is_https(address))) {
            Some(next) => Ok(Some(next)),
            None => Err(self.no_hub("it redirects to an address that cannot be followed")),
        }
    }

    /// Why a response is not what was asked for. The codes are those of huggingface_hub's `hf_raise_for_status`.
    fn refusal(&self, model: &HubModel, file: Option<&str>, response: &Response<Body>) -> HubError {
        let endpoint = self.endpoint.to_string();
        let repository = model.repository().to_owned();
        let signed_in = self.token.is_some();
        let no_file = |name: &str| HubError::NoFile {
            repository: repository.clone(),
            file: name.to_owned(),
            found: Vec::new(),
        };
        let status = response.status();
        match (status, text(response.headers(), "x-error-code").unwrap_or_default(), file) {
            (_, "GatedRepo", _) => HubError::Gated { endpoint, repository, signed_in },
            (_, "RevisionNotFound", _) => {
                HubError::NoRevision { endpoint, repository, revision: model.revision().to_owned() }
            }
            (StatusCode::NOT_FOUND, _, Some(name)) => no_file(name),
            (_, "RepoNotFound", _) | (StatusCode::NOT_FOUND, _, None) => {
                HubError::NoModel { endpoint, model: model.to_string(), signed_in }
            }
            (StatusCode::UNAUTHORIZED, ..) if signed_in => HubError::TokenRefused { endpoint },
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, ..) => {
                HubError::Denied { endpoint, repository, signed_in }
            }
            (StatusCode::TOO_MANY_REQUESTS, ..) => HubError::Busy { endpoint },
            _ if status.is_server_error() => HubError::OutOfOrder { endpoint, status: status.as_u16() },
            _ => self.no_hub(&format!("it answers with status {}", status.as_u16())),
        }
    }

    /// The server is no hub.
    pub(super) fn no_hub(&self, problem: &str) -> HubError {
        HubError::NoHub { endpoint: self.endpoint.to_string(), problem: problem.to_owned() }
    }
}

fn repository(model: &HubModel, revision: &str) -> Repo {
    Repo::with_revision(model.repository().to_owned(), RepoType::Model, revision.to_owned())
}

fn unreachable(endpoint: &Endpoint, reason: String) -> HubError {
    HubError::Unreachable { endpoint: endpoint.to_string(), reason }
}

/// What went wrong, without addresses: those of files may be signed.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(phase) => format!("no answer in time ({phase})"),
        ureq::Error::HostNotFound => "the host is not known".to_owned(),
        ureq::Error::Rustls(error) => format!("the connection cannot be encrypted: {error}"),
        ureq::Error::ConnectProxyFailed(_) | ureq::Error::InvalidProxyUrl => {
            "the proxy refused the connection".to_owned()
        }
        ureq::Error::ConnectionFailed => "the connection failed".to_owned(),
        ureq::Error::Protocol(error) => format!("the answer is not HTTP: {error}"),
        _ => "the request failed".to_owned(),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

/// The name of a file's content, without quotes and the mark of a weak one.
fn etag_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let etag = text(headers, name)?.trim();
    Some(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned())
}

/// The length of the whole file of which an answer holds all or a part.
fn length(response: &Response<Body>) -> Option<u64> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => range(response.headers()).map(|(_, bytes)| bytes),
        _ => number(response.headers(), "content-length"),
    }
}

/// First byte and length of the whole, of `Content-Range: bytes 0-0/709384` (RFC 9110, section 14.4).
fn range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let (part, whole) = text(headers, "content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((part.split_once('-')?.0.parse().ok()?, whole.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn content_is_named_without_decoration() {
        for written in ["\"abc\"", "W/\"abc\"", "abc", " \"abc\" "] {
            assert_eq!(etag_of(&headers(&[("etag", written)]), "etag").as_deref(), Some("abc"), "{written}");
        }
        assert_eq!(etag_of(&headers(&[]), "etag"), None);
    }

    #[test]
    fn ranges_are_read_or_refused() {
        let read = |value: &'static str| range(&headers(&[("content-range", value)]));
        assert_eq!(read("bytes 5-9/10"), Some((5, 10)));
        for wrong in ["bytes */10", "bytes 5-9/*", "5-9/10", "bytes -1-9/10", "bytes 5/10", ""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_redirect_never_leaves_encryption() {
        let hub = Hub::new(Endpoint::parse("https://hub.example").unwrap(), None).unwrap();
        let next = |from: &str, to: &str| {
            let response = Response::builder()
                .status(302)
                .header("location", to)
                .body(Body::builder().data(""))
                .unwrap();
            hub.redirected(&from.parse().unwrap(), &response).ok().flatten().map(|next| next.to_string())
        };
        let from = "https://hub.example/a/b";
        assert_eq!(next(from, "/c?d=e").as_deref(), Some("https://hub.example/c?d=e"));
        assert_eq!(next(from, "https://cdn.example/c").as_deref(), Some("https://cdn.example/c"));
        assert_eq!(
            next("http://127.0.0.1:1/a", "http://127.0.0.1:2/b").as_deref(),
            Some("http://127.0.0.1:2/b")
        );
        for wrong in ["http://cdn.example/c", "//cdn.example/c", "c", "", "file:///etc/passwd", "https://"] {
            assert_eq!(next(from, wrong), None, "{wrong}");
        }
    }
}
