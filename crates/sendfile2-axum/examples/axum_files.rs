//! A directory served by axum, without a copy in user space.
//!
//! ```sh
//! cargo run -p sendfile2-axum --example axum_files -- 127.0.0.1:4000 DIRECTORY
//! ```
use std::error::Error;

use axum::Router;
use axum::routing::get;
use sendfile2_axum::{Listener, ServeDir};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, directory] = &arguments[..] else {
        return Err("usage: axum_files ADDRESS DIRECTORY".into());
    };
    let files = ServeDir::new(directory).map_err(|e| format!("cannot serve {directory}: {e}"))?;
    let app = Router::new()
        // Whatever else the server does, as ever.
        .route("/health", get(|| async { "well\n" }))
        .fallback_service(files);
    // In place of tokio's listener: its connections send mapped bodies from their files.
    let listener = Listener::bind(address.parse()?).await;
    let listener = listener.map_err(|e| format!("cannot listen at {address}: {e}"))?;
    println!("listening on {}", axum::serve::Listener::local_addr(&listener)?);
    // In place of axum's: it makes mapped bodies of those that nothing has touched, for HTTP/1.
    sendfile2_axum::serve(listener, app).await?;
    Ok(())
}
