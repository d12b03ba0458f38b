//! URLs of HTTP endpoints that the node calls: their credentials, and the targets of redirects.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderValue, LOCATION};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use percent_encoding::percent_decode_str;

/// Where requests go, and what they show there.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// Without credentials.
    pub(super) uri: Uri,
    /// `user:password@` of the URL, as Basic (RFC 7617). Marked as sensitive, so it isn't printed.
    pub(super) authorization: Option<HeaderValue>,
}

/// Why a redirect isn't followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RedirectFault {
    #[error("a redirect without a Location that can be read")]
    NoLocation,
    #[error("a redirect to another origin, which is not followed: configure that address")]
    OtherOrigin,
    #[error("more than {REDIRECTS_MAX} redirects one after another")]
    TooMany,
}

/// Redirects that are followed one after another at most.
pub(super) const REDIRECTS_MAX: usize = 5;

impl Address {
    /// The address of a URL.
    ///
    /// # Errors
    /// It isn't one.
    pub(super) fn parse(url: &str) -> Result<Self, hyper::http::Error> {
        let uri = Uri::try_from(url)?;
        let authority = uri.authority().map(|authority| authority.as_str().to_owned());
        let Some((userinfo, host)) = authority.as_deref().and_then(|all| all.rsplit_once('@'))
        else {
            return Ok(Self { uri, authorization: None });
        };
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let mut credentials: Vec<u8> = percent_decode_str(user).collect();
        credentials.push(b':');
        credentials.extend(percent_decode_str(password));
        let mut basic = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(credentials)))?;
        basic.set_sensitive(true);
        let mut parts = uri.into_parts();
        parts.authority = Some(Authority::try_from(host)?);
        Ok(Self { uri: Uri::from_parts(parts)?, authorization: Some(basic) })
    }
}

/// Where a redirect of the response to a request to `from` leads, if that is the same origin.
///
/// # Errors
/// It leads elsewhere, or nowhere.
pub(super) fn redirected(from: &Uri, headers: &HeaderMap) -> Result<Uri, RedirectFault> {
    let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or(RedirectFault::NoLocation)?;
    let scheme = from.scheme_str().unwrap_or("http");
    // Relative ones (RFC 3986 4.2): to the scheme, to the host, to the path. Browsers know more forms, servers
    // send these.
    let to = match location {
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') || location.contains("://") => location.to_owned(),
        _ if location.is_empty() || location.starts_with(['.', '?', '#']) => {
            return Err(RedirectFault::NoLocation);
        }
        _ => {
            let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{location}")
        }
    };
    let to = Uri::try_from(to).map_err(|_| RedirectFault::NoLocation)?;
    let is_same = match (to.scheme(), to.authority()) {
        (None, None) => true,
        (Some(scheme), Some(authority)) => {
            Some(scheme) == from.scheme()
                && origin(&to) == origin(from)
                && !authority.as_str().contains('@')
        }
        _ => return Err(RedirectFault::NoLocation),
    };
    if !is_same {
        return Err(RedirectFault::OtherOrigin);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = to.into_parts().path_and_query.or(Some(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).map_err(|_| RedirectFault::NoLocation)
}

/// Host and port. Hosts know no case.
fn origin(uri: &Uri) -> (Option<String>, u16) {
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    (uri.host().map(str::to_ascii_lowercase), uri.port_u16().unwrap_or(usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_become_a_header() {
        for (url, uri, basic) in [
            ("http://a/x", "http://a/x", None),
            ("http://user:pass@a:1/x?y", "http://a:1/x?y", Some("Basic dXNlcjpwYXNz")),
            ("https://user@a", "https://a/", Some("Basic dXNlcjo=")),
            ("http://u%40b:p%3Aq@[::1]:8/", "http://[::1]:8/", Some("Basic dUBiOnA6cQ==")),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.uri.to_string(), uri);
            let given = address.authorization.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(given, basic, "{url}");
            assert!(!format!("{address:?}").contains("Basic"), "{address:?}");
        }
    }

    #[test]
    fn redirects_lead_to_the_same_origin_or_nowhere() {
        use RedirectFault::{NoLocation, OtherOrigin};
        let to = |location: &'static str| {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(location))]);
            let from = Uri::from_static("http://app:80/v1/connect?a=b");
            redirected(&from, &headers).map(|uri| uri.to_string())
        };
        for (location, expected) in [
            ("/v2/connect/?c", Ok("http://app:80/v2/connect/?c")),
            ("connect/", Ok("http://app:80/v1/connect/")),
            ("http://APP/x", Ok("http://app:80/x")),
            ("//app/x", Ok("http://app:80/x")),
            ("http://app", Ok("http://app:80/")),
            ("https://app/x", Err(OtherOrigin)),
            ("http://app:81/x", Err(OtherOrigin)),
            ("http://other/x", Err(OtherOrigin)),
            ("//other/x", Err(OtherOrigin)),
            ("http://user:pass@app/x", Err(OtherOrigin)),
            ("../x", Err(NoLocation)),
            ("", Err(NoLocation)),
            ("http://", Err(NoLocation)),
        ] {
            assert_eq!(to(location), expected.map(str::to_owned), "{location}");
        }
        let nowhere = redirected(&Uri::from_static("http://a/"), &HeaderMap::new());
        assert_eq!(nowhere, Err(NoLocation));
    }
}
