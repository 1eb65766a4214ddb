//! Domain error → gRPC status: the one place.

use tonic::{Code, Status};

use crate::error::{Error, Kind};

impl From<Kind> for Code {
    fn from(kind: Kind) -> Code {
        match kind {
            Kind::NotFound => Code::NotFound,
            Kind::AlreadyExists => Code::AlreadyExists,
            Kind::InvalidArgument => Code::InvalidArgument,
            Kind::FailedPrecondition => Code::FailedPrecondition,
            Kind::Unavailable => Code::Unavailable,
            Kind::Unauthenticated => Code::Unauthenticated,
            Kind::Untrusted => Code::PermissionDenied,
            Kind::ResourceExhausted => Code::ResourceExhausted,
            Kind::DataLoss => Code::DataLoss,
            Kind::DeadlineExceeded => Code::DeadlineExceeded,
            Kind::Cancelled => Code::Cancelled,
            Kind::Unimplemented => Code::Unimplemented,
            Kind::Internal => Code::Internal,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let kind = error.kind();
        let text = error.chain();
        if kind == Kind::Internal {
            tracing::error!(error = %text, "request failed");
        } else {
            tracing::debug!(error = %text, ?kind, "request refused");
        }
        Status::new(kind.into(), text)
    }
}
