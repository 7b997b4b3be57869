//! Purging: what those who run a cache want to be asked for anew.

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use percent_encoding::percent_decode;
use sendfile2_cache::Cache;
use sendfile2_cache::store::Ban;

use super::connection::Server;

/// The longest URL, prefix or tag, in bytes.
const LONGEST: usize = 8 << 10;

/// Answers a request to purge, when that will last.
pub(super) async fn answer(
    server: &Server,
    headers: &HeaderMap,
    body: &Bytes,
) -> (StatusCode, String) {
    let refused = |why: &str| (StatusCode::BAD_REQUEST, format!("{why}\n"));
    // A page that the operator looks at may send a form to anybody.
    if headers.contains_key(header::ORIGIN) {
        return (StatusCode::FORBIDDEN, "a page of a browser does not purge\n".into());
    }
    let ban = match ban(body) {
        Ok(ban) => ban,
        Err(why) => return refused(why),
    };
    let Some(cache) = server.site.load().cache().cloned() else {
        return (StatusCode::NOT_FOUND, String::new());
    };
    match tokio::task::spawn_blocking(move || cache.ban(ban)).await.map_err(anyhow::Error::from) {
        Ok(Ok(())) => (StatusCode::OK, "purged\n".into()),
        Ok(Err(e)) => failed(&e.into()),
        Err(e) => failed(&e),
    }
}

fn failed(why: &anyhow::Error) -> (StatusCode, String) {
    let why = format!(
        "purged until the server is started anew: it is not certain that this lasts longer: {why:#}\n"
    );
    (StatusCode::INTERNAL_SERVER_ERROR, why)
}

/// Reads a form of one field.
fn ban(form: &[u8]) -> Result<Ban, &'static str> {
    const ONE: &str =
        "which? one of url=, prefix= and tag=, as a form has it (curl --data-urlencode)";
    if form.len() > 3 * LONGEST {
        return Err("it is longer than 8 KiB");
    }
    let form = form.trim_ascii_end();
    let at = form.iter().position(|byte| *byte == b'=').ok_or(ONE)?;
    let (name, value) = (&form[..at], &form[at + 1..]);
    if value.contains(&b'&') {
        return Err(ONE);
    }
    let value: Vec<u8> = value.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    let value = percent_decode(&value).decode_utf8().map_err(|_| "it is not UTF-8")?;
    if value.len() > LONGEST {
        return Err("it is longer than 8 KiB");
    }
    let url = || {
        let url = value.parse::<Uri>().ok().filter(|_| !value.contains('#'));
        url.ok_or("it is no URL, such as http://example.org/a?b")
    };
    let none = "it names no target: http:// or https://, a host, a path";
    match name {
        b"url" => Cache::ban_of_url(&url()?).ok_or(none),
        b"prefix" => Cache::ban_of_prefix(&url()?).ok_or(none),
        b"tag" if value.is_empty() || *value != *value.trim() || value.contains('\n') => {
            Err("it is no tag")
        }
        b"tag" => Ok(Ban::Tag(value.into_owned())),
        _ => Err(ONE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_names_one_thing_to_purge() {
        let prefix = |text: &str| Ok(Ban::Prefix(text.into()));
        for (form, expected) in [
            ("tag=red", Ok(Ban::Tag("red".into()))),
            ("tag=a+b%2C%26\r\n", Ok(Ban::Tag("a b,&".into()))),
            ("prefix=https%3A%2F%2FH%3A443%2Fa%2F", prefix("h/a/")),
            ("prefix=http://h:443", prefix("h:443/")),
        ] {
            assert_eq!(ban(form.as_bytes()), expected, "{form}");
        }
        let url = |form: &str| ban(format!("url={form}").as_bytes());
        assert_eq!(url("http://h/a?b=c"), url("https%3a//H:443/a%3Fb=c"));
        assert_ne!(url("http://h/a"), url("http://h/b"));
        for form in [
            "",
            "tag",
            "tag=",
            "tag=+a",
            "tag=a%0Ab",
            "tag=%ff",
            "url=",
            "url=/a",
            "url=h",
            "url=h:80",
            "url=ftp://h/a",
            "url=http://u@h/a",
            "url=http://h/a#b",
            "url=http://h/a&tag=b",
            "prefix=h/a",
            "what=red",
        ] {
            assert!(ban(form.as_bytes()).is_err(), "{form}");
        }
        assert!(ban(format!("tag={}", "x".repeat(LONGEST + 1)).as_bytes()).is_err());
    }
}
