//! The API of a supervisor that waits for another one to end: alive, and not ready.

use std::{net::TcpListener, sync::Arc};

use actix_web::{
    App, HttpResponse, HttpServer, ResponseError,
    dev::ServerHandle,
    middleware::from_fn,
    web::{self, Data},
};

use super::{document, problem::ApiError, trace::trace};
use crate::{
    contract::health::{PartStatus, Probe},
    domain::turn::outcome::ErrorCode,
};

/// Time for answers that are being written when the wait ends, in seconds.
const SHUTDOWN_S: u64 = 1;

/// The running server.
pub(crate) struct WaitingHttp(ServerHandle);

/// Answers `/livez` and `/openapi.json` as the API does and everything else with 503 and this reason, on the address of
/// the API. The caller's listener stays bound.
///
/// # Errors
/// The listener cannot be shared.
pub(crate) fn wait_on(listener: &TcpListener, reason: String) -> std::io::Result<WaitingHttp> {
    let (reason, document) = (Data::from(Arc::new(reason)), Arc::new(document()));
    let server = HttpServer::new(move || {
        let document = document.clone();
        App::new()
            .app_data(reason.clone())
            .route("/livez", web::get().to(async || web::Json(Probe { status: PartStatus::Ok, runtime: None })))
            .route("/openapi.json", web::get().to(move || std::future::ready(web::Json(document.clone()))))
            .default_service(web::to(unready))
            .wrap(from_fn(trace))
    })
    .workers(1)
    .shutdown_timeout(SHUTDOWN_S)
    .disable_signals()
    .listen(listener.try_clone()?)?
    .run();
    let handle = server.handle();
    actix::spawn(server);
    Ok(WaitingHttp(handle))
}

async fn unready(reason: Data<String>) -> HttpResponse {
    ApiError::new(ErrorCode::DatabaseUnavailable, reason.as_str()).error_response()
}

impl WaitingHttp {
    /// Closes its connections; later ones wait for the API.
    pub(crate) async fn stop(self) {
        self.0.stop(true).await;
    }
}
