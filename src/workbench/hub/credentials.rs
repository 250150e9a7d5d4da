//! The hub's address and the user's token.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use super::error::HubError;

/// The hub where `HF_ENDPOINT` names no other.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// The variable for the hub's address.
const ENDPOINT_VARIABLE: &str = "HF_ENDPOINT";

/// The variables for the token; the second is huggingface_hub's older name.
const TOKEN_VARIABLES: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

/// Largest token that is read from a file.
const LONGEST_TOKEN: u64 = 16 << 10;

/// The address of a hub, without a slash at its end.
#[derive(Clone, Debug)]
pub struct Endpoint(Uri);

/// The token that identifies the user. It is never shown.
#[derive(Clone)]
pub struct Token(String);

impl Endpoint {
    /// What `HF_ENDPOINT` names, else the public hub.
    pub fn of_environment() -> Result<Self, HubError> {
        match std::env::var(ENDPOINT_VARIABLE) {
            Ok(address) if !address.trim().is_empty() => Self::parse(&address),
            _ => Self::parse(PUBLIC_HUB),
        }
    }

    /// Reads an address, such as `https://huggingface.co`.
    pub fn parse(address: &str) -> Result<Self, HubError> {
        let wrong = |problem| HubError::Environment { variable: ENDPOINT_VARIABLE.to_owned(), problem };
        let uri: Uri = address
            .trim()
            .trim_end_matches('/')
            .parse()
            .map_err(|_| wrong("is no address; write it as https://huggingface.co"))?;
        let is_web = uri.scheme() == Some(&Scheme::HTTPS) || uri.scheme() == Some(&Scheme::HTTP);
        let Some(authority) = uri.authority().filter(|_| is_web && uri.query().is_none()) else {
            return Err(wrong("is no address; write it as https://huggingface.co"));
        };
        if authority.as_str().contains('@') {
            return Err(wrong("contains a user name or a password, which would be shown; use HF_TOKEN"));
        }
        Ok(Self(uri))
    }

    /// Whether an address belongs to the hub itself: the same scheme, host and port.
    pub(super) fn owns(&self, address: &Uri) -> bool {
        let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
        let port = |uri: &Uri| uri.port_u16().or(if is_https(uri) { Some(443) } else { Some(80) });
        self.0.scheme() == address.scheme()
            && host(&self.0) == host(address)
            && port(&self.0) == port(address)
    }
}

pub(super) fn is_https(address: &Uri) -> bool {
    address.scheme() == Some(&Scheme::HTTPS)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.to_string().trim_end_matches('/'))
    }
}

impl Token {
    /// The token of `HF_TOKEN`, else of the file at `path`, where `hf auth login` leaves it; `None` without either.
    pub fn of_environment(path: &Path) -> Result<Option<Self>, HubError> {
        for variable in TOKEN_VARIABLES {
            if let Some(value) = std::env::var_os(variable) {
                let token = Self::parse(&value.to_string_lossy(), variable)?;
                if token.is_some() {
                    return Ok(token);
                }
            }
        }
        Self::read(path)
    }

    fn read(path: &Path) -> Result<Option<Self>, HubError> {
        let mut text = String::new();
        match File::open(path).and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut text)) {
            Ok(_) => Self::parse(&text, &path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HubError::file("read", path)(error)),
        }
    }

    /// Trims the white space that editors and shells leave.
    fn parse(text: &str, whence: &str) -> Result<Option<Self>, HubError> {
        let token = text.trim();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HubError::Environment {
                variable: whence.to_owned(),
                problem: "contains characters no token has; copy the token again, one line beginning with hf_",
            });
        }
        Ok(Some(token).filter(|token| !token.is_empty()).map(|token| Self(token.to_owned())))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn only_addresses_are_accepted() {
        for (written, shown) in [
            ("https://huggingface.co", "https://huggingface.co"),
            (" http://127.0.0.1:8080/ ", "http://127.0.0.1:8080"),
            ("https://mirror.example/hub//", "https://mirror.example/hub"),
        ] {
            assert_eq!(Endpoint::parse(written).unwrap().to_string(), shown);
        }
        for wrong in
            ["", "huggingface.co", "ftp://host", "https://", "https://host/?a=b", "file:///etc", "a b"]
        {
            let error = Endpoint::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("HF_ENDPOINT is no address"), "{wrong}: {error}");
        }
        let error = Endpoint::parse("https://me:secret@host").unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn the_token_is_for_the_hub_alone() {
        let hub = Endpoint::parse("https://hub.example").unwrap();
        let owns = |address: &str| hub.owns(&address.parse().unwrap());
        assert!(owns("https://hub.example/a") && owns("https://HUB.example:443/a?b"));
        for foreign in [
            "http://hub.example/a",
            "https://hub.example:444/a",
            "https://cdn.hub.example/a",
            "https://hub.example.evil/a",
        ] {
            assert!(!owns(foreign), "{foreign}");
        }
    }

    #[test]
    fn tokens_are_trimmed_checked_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(Token::read(&path).unwrap().is_none());
        fs::write(&path, "hf_secret\n").unwrap();
        let token = Token::read(&path).unwrap().unwrap();
        assert_eq!((token.expose(), format!("{token:?}").as_str()), ("hf_secret", "Token(…)"));
        fs::write(&path, " \n").unwrap();
        assert!(Token::read(&path).unwrap().is_none());
        for wrong in ["hf_a\nhf_b", "hf_ä", "hf a", "hf_\u{1b}[2J"] {
            let error = Token::parse(wrong, "HF_TOKEN").unwrap_err().to_string();
            assert!(error.starts_with("HF_TOKEN contains") && !error.contains(wrong), "{error:?}");
        }
    }
}
