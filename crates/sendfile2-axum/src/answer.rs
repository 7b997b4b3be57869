//! The answer to a request for a file: all of it, a part, or that it is as the client knows it.

use std::ops::Range;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use crate::body::FileBody;
use crate::conditions::Validators;
use crate::range::{self, Asked};

impl FileBody {
    /// Returns the answer to a GET or HEAD with the headers `asked`: its part that is asked for
    /// (206, or 416 if there is none), or nothing where the client's conditions say so (304, 412).
    /// All of it is what `known` tells of. The type of its content is for the caller to add.
    ///
    /// ```
    /// # use axum::extract::{Request, State};
    /// # use axum::http::StatusCode;
    /// # use axum::response::IntoResponse;
    /// # use sendfile2::Source;
    /// # use sendfile2_axum::{FileBody, Validators};
    /// async fn download(State(file): State<Source>, request: Request) -> impl IntoResponse {
    ///     let answer = || {
    ///         let body = FileBody::new(file.clone(), 0..file.size()?)?;
    ///         let known = Validators::of(&file)?;
    ///         Ok(body.answer(request.method(), request.headers(), &known))
    ///     };
    ///     answer().map_err(|_: sendfile2::Error| StatusCode::NOT_FOUND)
    /// }
    /// # let _: axum::Router<Source> = axum::Router::new().fallback(download);
    /// ```
    #[must_use]
    pub fn answer(
        self,
        method: &Method,
        asked: &HeaderMap,
        known: &Validators,
    ) -> Response<FileBody> {
        let (status, headers, part) = known.answer(method, asked, self.len());
        let mut response = self.part(&part).into_response();
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

impl Validators {
    /// Returns what [`FileBody::answer`] would answer of `len` bytes, for a body of another kind:
    /// its status, its headers without a type, and which bytes.
    #[must_use]
    pub fn answer(
        &self,
        method: &Method,
        asked: &HeaderMap,
        len: u64,
    ) -> (StatusCode, HeaderMap, Range<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::CONTENT_LENGTH, len.into());
        decide(method, asked, self, headers, len)
    }
}

/// Decides on the answer of `len` bytes that `known` tells of, whose headers are these if all of it
/// is sent: its status, its headers, and which bytes.
pub(crate) fn decide(
    method: &Method,
    asked: &HeaderMap,
    known: &Validators,
    mut headers: HeaderMap,
    len: u64,
) -> (StatusCode, HeaderMap, Range<u64>) {
    known.tell(&mut headers);
    if !matches!(*method, Method::GET | Method::HEAD) {
        return (StatusCode::OK, headers, 0..len);
    }
    // About the content of which nothing is sent.
    let content = [header::CONTENT_TYPE, header::CONTENT_ENCODING];
    if let Some(status) = known.precondition(asked) {
        for name in content.iter().chain(&[header::CONTENT_LENGTH, header::ACCEPT_RANGES]) {
            headers.remove(name);
        }
        return (status, headers, 0..0);
    }
    let now = SystemTime::now();
    let mut parts = asked.get_all(header::IF_RANGE).iter();
    let part = if *method == Method::GET && parts.all(|part| known.in_range(part, now)) {
        range::asked(asked, len)
    } else {
        Asked::Whole
    };
    let (status, range, told) = match part {
        Asked::Whole => return (StatusCode::OK, headers, 0..len),
        Asked::Part(range) => {
            let told = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            (StatusCode::PARTIAL_CONTENT, range, told)
        }
        Asked::Unsatisfiable => {
            content.iter().for_each(|name| drop(headers.remove(name)));
            (StatusCode::RANGE_NOT_SATISFIABLE, 0..0, format!("bytes */{len}"))
        }
    };
    // Digits are valid in a header.
    if let Ok(told) = HeaderValue::try_from(told) {
        headers.insert(header::CONTENT_RANGE, told);
    }
    headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    (status, headers, range)
}
