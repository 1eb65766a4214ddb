//! Images that a build begins with or copies from: which ones, and how they come here.
//!
//! An image is wanted for the platform of the stage that names it. One name may stand for several images in a build, as
//! where `FROM --platform=$BUILDPLATFORM` compiles for another machine. An image of another platform than this node's
//! is taken from the registry's index and kept under its digest alone: the name stays with the image that runs here.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Base, Error, Evaluated, Failure, Foundation, Origin, Plan, Request, Solver, Span, StageId, StepState,
    Told, blocking, image,
};
use crate::{Held, Image, Platform, Progress, Reference};

/// An image as a stage names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Wanted {
    name: String,
    platform: Platform,
}

/// Who wants it.
pub(super) struct Need {
    pub(super) wanted: Wanted,
    span: Span,
    stage: String,
}

/// The images that these stages name, and those that their evaluation has brought up.
pub(super) fn needed(
    plan: &Plan,
    stages: &BTreeSet<StageId>,
    evaluated: &BTreeMap<StageId, Evaluated>,
) -> Vec<Need> {
    let mut needed = Vec::new();
    for id in stages {
        let stage = plan.stage(*id);
        let base = match &stage.base {
            Base::Image(name) => Some(name),
            Base::Scratch | Base::Stage(_) => None,
        };
        let origins = evaluated.get(id).into_iter().flat_map(|stage| &stage.origins);
        let origins = origins.filter_map(|origin| match origin {
            Origin::Image(name) => Some(name),
            Origin::Stage(_) | Origin::Context | Origin::Scratch => None,
        });
        needed.extend(base.into_iter().chain(&stage.images).chain(origins).map(|name| Need {
            wanted: Wanted { name: name.clone(), platform: stage.platform.clone() },
            span: stage.span,
            stage: stage.title.clone(),
        }));
    }
    needed
}

impl Solver {
    /// One of those that `needed` names, which all are here once the stages are evaluated.
    pub(super) fn ground(&self, name: &str, platform: &Platform) -> &Held {
        &self.images[&Wanted { name: name.to_owned(), platform: platform.clone() }]
    }

    /// Finds an image or pulls it.
    pub(super) async fn get(&self, request: &Request, need: Need) -> Result<(Wanted, Held), Failure> {
        let Need { wanted, span, stage } = need;
        let title = format!("FROM {}", wanted.name);
        let told = self.reporter.announce(&stage, (0, 0), &title, span.line).await;
        told.running().await;
        match self.find(request, &wanted, &told).await {
            Ok((image, here)) => {
                let state = if here { StepState::Cached } else { StepState::Done };
                told.ended(state, "", "").await;
                Ok((wanted, image))
            }
            Err(error) => {
                told.ended(StepState::Failed, &crate::error::chain(&error), "").await;
                Err(self.placed(error, span, Some(told.id())))
            }
        }
    }

    async fn find(&self, request: &Request, wanted: &Wanted, told: &Told) -> Result<(Held, bool), Error> {
        let here = if request.pull { None } else { self.hold(&wanted.name).await? };
        let misfit = match here {
            Some(image) if fits(&image, &wanted.platform) => return Ok((image, true)),
            here => here.map(|image| misfit_of(wanted, &image)),
        };
        let pulled = self.pull(request, wanted, told).await;
        let image = pulled.map_err(|error| match misfit {
            // Most likely it was made here, and no registry knows of it.
            Some(misfit) => Error::Invalid(format!("{misfit}, and {}", crate::error::chain(&error))),
            None => error,
        })?;
        if !fits(&image, &wanted.platform) {
            return Err(Error::Invalid(misfit_of(wanted, &image)));
        }
        Ok((image, false))
    }

    async fn pull(&self, request: &Request, wanted: &Wanted, told: &Told) -> Result<Held, Error> {
        let images = &self.site.builder.images;
        let mut reference: Reference = wanted.name.parse().map_err(crate::Error::from)?;
        let auth = request.credentials.get(reference.domain()).cloned();
        if !same_machine(&wanted.platform, &Platform::default()) {
            reference = images.manifest_for(&reference, auth.clone(), &wanted.platform).await?;
        }
        let (progress, mut layers) = Progress::channel();
        let forward = async {
            while let Some(layer) = layers.recv().await {
                told.pull(layer).await;
            }
        };
        let (pulled, ()) = tokio::join!(images.pull(&reference, auth, progress), forward);
        let id = pulled?.id;
        Ok(self.hold(id.as_str()).await?.ok_or(crate::Error::NoImage { id })?)
    }

    async fn hold(&self, name: &str) -> Result<Option<Held>, Error> {
        let (images, name) = (self.site.builder.images.clone(), name.to_owned());
        blocking(move || images.hold(&name).map_err(Error::from)).await
    }

    /// What a stage stands on that begins with this image.
    pub(super) fn foundation(&self, name: &str, platform: &Platform) -> Result<Foundation, Failure> {
        let image = self.ground(name, platform);
        let document = image::document(&self.site.builder.store, image).map_err(Failure::plain)?;
        let config = super::super::Config::read(document.get("config").unwrap_or(&serde_json::Value::Null));
        let config = config.map_err(|error| {
            Failure::plain(Error::Invalid(format!("the configuration of {name} does not parse: {error}")))
        })?;
        let author = document.get("author").and_then(serde_json::Value::as_str).unwrap_or_default();
        Ok(Foundation::image(config, platform_of(image), author.to_owned()))
    }
}

fn platform_of(image: &Image) -> Platform {
    let config = &image.config;
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    Platform { os, architecture, variant: config.variant().clone() }
}

/// Whether an image is for the platform that it is wanted for.
fn fits(image: &Image, wanted: &Platform) -> bool {
    same_machine(&platform_of(image), wanted)
}

/// Variants are left to the registry's index, which ranks them.
fn same_machine(one: &Platform, other: &Platform) -> bool {
    (&one.os, &one.architecture) == (&other.os, &other.architecture)
}

fn misfit_of(wanted: &Wanted, image: &Image) -> String {
    format!("{} is for {}, and is wanted for {}", wanted.name, platform_of(image), wanted.platform)
}
