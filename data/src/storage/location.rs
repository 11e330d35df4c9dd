//! Addresses of objects.

use std::path::{Path, PathBuf};

use object_store::path::Path as ObjectPath;

/// What an address may begin with.
const SCHEMES: &str = "a local path, s3://, gs://, az://, https:// or http://";

/// What stores objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scheme {
    /// Amazon S3, and what speaks as it does.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage; the container stands where others have a bucket.
    Az,
    /// A web server, with TLS.
    Https,
    /// A web server.
    Http,
}

impl Scheme {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "s3" => Self::S3,
            "gs" => Self::Gs,
            "az" => Self::Az,
            "https" => Self::Https,
            "http" => Self::Http,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::Https => "https",
            Self::Http => "http",
        }
    }

    /// Whether it has buckets, whose objects can be listed.
    pub fn is_bucket(self) -> bool {
        !matches!(self, Self::Https | Self::Http)
    }
}

/// An object, or the objects below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub scheme: Scheme,
    /// The bucket, or the server.
    pub host: String,
    /// What follows, as it was written: a key, or a pattern of keys.
    pub key: String,
}

impl Location {
    /// Takes an address apart; what was expected where it is none.
    pub fn parse(path: &Path) -> Result<Self, String> {
        let text = path.to_str().ok_or("an address in UTF-8")?;
        let (scheme, rest) = text.split_once("://").ok_or(SCHEMES)?;
        let scheme = Scheme::of(scheme).ok_or(SCHEMES)?;
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        let name = if scheme.is_bucket() { "BUCKET" } else { "SERVER" };
        if host.is_empty() || host.contains(['@', '?', '#', '*']) {
            return Err(format!("{}://{name}/PATH", scheme.name()));
        }
        if !scheme.is_bucket() && key.contains(['?', '#']) {
            return Err(
                "an address without `?` and `#`: what is behind them changes the name of the \
                        file; download it, or give its bucket"
                    .into(),
            );
        }
        Ok(Self { scheme, host: host.to_owned(), key: key.to_owned() })
    }

    /// The path of the object in its store.
    pub fn object(&self) -> Result<ObjectPath, String> {
        let path = match self.scheme.is_bucket() {
            true => ObjectPath::parse(&self.key),
            false => ObjectPath::from_url_path(&self.key),
        };
        let path = path.map_err(|error| format!("a path of an object: {error}"))?;
        match path.as_ref() {
            "" => Err("an address that names an object, not a whole bucket or server".to_owned()),
            _ => Ok(path),
        }
    }

    /// The address of an object of the same store.
    pub fn of_key(&self, key: &str) -> PathBuf {
        format!("{}://{}/{key}", self.scheme.name(), self.host).into()
    }
}

/// Whether `path` is an address rather than a path of this machine.
pub fn is_remote(path: &Path) -> bool {
    let scheme = path.to_str().and_then(|text| Some(text.split_once("://")?.0));
    scheme.is_some_and(|scheme| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// `path` as seen from the folder `base`; an address as it is.
pub(crate) fn absolute(base: &Path, path: &Path) -> PathBuf {
    if is_remote(path) { path.to_owned() } else { base.join(path) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths() {
        for path in ["s3://bucket/a", "https://host", "ftp://x/y"] {
            assert!(is_remote(Path::new(path)), "{path}");
            assert_eq!(absolute(Path::new("/base"), Path::new(path)), Path::new(path));
        }
        for path in ["a/b", "/s3:/bucket/a", "://x", "a b://c", "./s3://x"] {
            assert!(!is_remote(Path::new(path)), "{path}");
        }
        assert_eq!(absolute(Path::new("/base"), Path::new("a")), Path::new("/base/a"));
    }

    #[test]
    fn an_address_is_taken_apart() {
        let location = Location::parse(Path::new("s3://bucket/a//b c/*.gz")).unwrap();
        assert_eq!((location.scheme, location.host.as_str()), (Scheme::S3, "bucket"));
        assert_eq!(location.key, "a//b c/*.gz");
        assert_eq!(location.of_key("x/y"), Path::new("s3://bucket/x/y"));
        let object = |text: &str| Location::parse(Path::new(text)).unwrap().object();
        assert_eq!(object("https://host/a%20b").unwrap().as_ref(), "a b");
        assert!(object("gs://bucket").unwrap_err().contains("names an object"));
        assert!(object("az://container/a/../b").is_err());
        for wrong in ["file:///a", "s3:///a", "s3://a@b/c", "https:///x", "http://host/a#b"] {
            assert!(Location::parse(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
