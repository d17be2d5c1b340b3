//! Error codes that the mesh itself gives, in Meilisearch's vocabulary plus the `miroir_*` ones.
//!
//! One exhaustive table from code to status, type and link. Errors that a node gives pass through with its own code and
//! are not listed here. Must not know: HTTP types, message texts.

/// Meilisearch's `type` of an error: who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong; repeating it changes nothing.
    InvalidRequest,
    /// The server is at fault.
    Internal,
    /// The key is missing or insufficient.
    Auth,
    /// The machine is at fault (disk, memory).
    System,
}

impl ErrorKind {
    /// The text of the field `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Internal => "internal",
            Self::Auth => "auth",
            Self::System => "system",
        }
    }
}

macro_rules! codes {
    ($($variant:ident $text:literal $status:literal $kind:ident),+ $(,)?) => {
        /// A code that the mesh itself gives.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // The text of each is its documentation.
        pub enum ErrorCode { $($variant),+ }

        impl ErrorCode {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),+];

            /// The text of the field `code`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// The field `type`.
            pub fn kind(self) -> ErrorKind {
                match self { $(Self::$variant => ErrorKind::$kind),+ }
            }
        }
    };
}

codes! {
    BadRequest "bad_request" 400 InvalidRequest,
    MalformedPayload "malformed_payload" 400 InvalidRequest,
    MissingPayload "missing_payload" 400 InvalidRequest,
    PayloadTooLarge "payload_too_large" 413 InvalidRequest,
    MissingContentType "missing_content_type" 415 InvalidRequest,
    InvalidContentType "invalid_content_type" 415 InvalidRequest,
    MissingAuthorizationHeader "missing_authorization_header" 401 Auth,
    MissingMasterKey "missing_master_key" 401 Auth,
    InvalidApiKey "invalid_api_key" 403 Auth,
    IndexNotFound "index_not_found" 404 InvalidRequest,
    IndexAlreadyExists "index_already_exists" 409 InvalidRequest,
    IndexCreationFailed "index_creation_failed" 500 Internal,
    DocumentNotFound "document_not_found" 404 InvalidRequest,
    TaskNotFound "task_not_found" 404 InvalidRequest,
    BatchNotFound "batch_not_found" 404 InvalidRequest,
    InvalidIndexUid "invalid_index_uid" 400 InvalidRequest,
    MissingIndexUid "missing_index_uid" 400 InvalidRequest,
    InvalidMultiSearchFederationOptions "invalid_multi_search_federation_options" 400 InvalidRequest,
    ImmutableIndexCreatedAt "immutable_index_created_at" 400 InvalidRequest,
    ImmutableIndexUpdatedAt "immutable_index_updated_at" 400 InvalidRequest,
    InvalidIndexPrimaryKey "invalid_index_primary_key" 400 InvalidRequest,
    InvalidIndexLimit "invalid_index_limit" 400 InvalidRequest,
    InvalidIndexOffset "invalid_index_offset" 400 InvalidRequest,
    ImmutableIndexUid "immutable_index_uid" 400 InvalidRequest,
    IndexPrimaryKeyAlreadyExists "index_primary_key_already_exists" 400 InvalidRequest,
    IndexPrimaryKeyNoCandidateFound "index_primary_key_no_candidate_found" 400 InvalidRequest,
    IndexPrimaryKeyMultipleCandidatesFound "index_primary_key_multiple_candidates_found" 400 InvalidRequest,
    InvalidDocumentId "invalid_document_id" 400 InvalidRequest,
    MissingDocumentId "missing_document_id" 400 InvalidRequest,
    InvalidDocumentFields "invalid_document_fields" 400 InvalidRequest,
    InvalidDocumentGeoField "invalid_document_geo_field" 400 InvalidRequest,
    InvalidVectorDimensions "invalid_vector_dimensions" 400 InvalidRequest,
    InvalidVectorsType "invalid_vectors_type" 400 InvalidRequest,
    InvalidDocumentFilter "invalid_document_filter" 400 InvalidRequest,
    MissingDocumentFilter "missing_document_filter" 400 InvalidRequest,
    InvalidDocumentLimit "invalid_document_limit" 400 InvalidRequest,
    InvalidDocumentOffset "invalid_document_offset" 400 InvalidRequest,
    InvalidDocumentIds "invalid_document_ids" 400 InvalidRequest,
    InvalidDocumentSort "invalid_document_sort" 400 InvalidRequest,
    InvalidDocumentRetrieveVectors "invalid_document_retrieve_vectors" 400 InvalidRequest,
    InvalidDocumentCsvDelimiter "invalid_document_csv_delimiter" 400 InvalidRequest,
    InvalidSkipCreation "invalid_skip_creation" 400 InvalidRequest,
    InvalidStatsShowInternalDatabaseSizes "invalid_stats_show_internal_database_sizes" 400 InvalidRequest,
    InvalidStatsSizeFormat "invalid_stats_size_format" 400 InvalidRequest,
    InvalidTaskUids "invalid_task_uids" 400 InvalidRequest,
    InvalidBatchUids "invalid_batch_uids" 400 InvalidRequest,
    InvalidTaskCanceledBy "invalid_task_canceled_by" 400 InvalidRequest,
    InvalidTaskTypes "invalid_task_types" 400 InvalidRequest,
    InvalidTaskStatuses "invalid_task_statuses" 400 InvalidRequest,
    InvalidTaskLimit "invalid_task_limit" 400 InvalidRequest,
    InvalidTaskFrom "invalid_task_from" 400 InvalidRequest,
    InvalidTaskReverse "invalid_task_reverse" 400 InvalidRequest,
    InvalidTaskAfterEnqueuedAt "invalid_task_after_enqueued_at" 400 InvalidRequest,
    InvalidTaskBeforeEnqueuedAt "invalid_task_before_enqueued_at" 400 InvalidRequest,
    InvalidTaskAfterStartedAt "invalid_task_after_started_at" 400 InvalidRequest,
    InvalidTaskBeforeStartedAt "invalid_task_before_started_at" 400 InvalidRequest,
    InvalidTaskAfterFinishedAt "invalid_task_after_finished_at" 400 InvalidRequest,
    InvalidTaskBeforeFinishedAt "invalid_task_before_finished_at" 400 InvalidRequest,
    MissingTaskFilters "missing_task_filters" 400 InvalidRequest,
    InvalidSearchQ "invalid_search_q" 400 InvalidRequest,
    InvalidSearchLimit "invalid_search_limit" 400 InvalidRequest,
    InvalidSearchOffset "invalid_search_offset" 400 InvalidRequest,
    InvalidSearchPage "invalid_search_page" 400 InvalidRequest,
    InvalidSearchHitsPerPage "invalid_search_hits_per_page" 400 InvalidRequest,
    InvalidSearchFilter "invalid_search_filter" 400 InvalidRequest,
    InvalidSearchSort "invalid_search_sort" 400 InvalidRequest,
    InvalidSearchFacets "invalid_search_facets" 400 InvalidRequest,
    InvalidSearchDistinct "invalid_search_distinct" 400 InvalidRequest,
    InvalidSettingsFilterableAttributes "invalid_settings_filterable_attributes" 400 InvalidRequest,
    FeatureNotEnabled "feature_not_enabled" 400 InvalidRequest,
    TooManySearchRequests "too_many_search_requests" 503 System,
    Internal "internal" 500 Internal,
    MiroirReservedField "miroir_reserved_field" 400 InvalidRequest,
    MiroirIndexLimit "miroir_index_limit" 400 InvalidRequest,
    MiroirNotSupported "miroir_not_supported" 501 InvalidRequest,
    MiroirMeshState "miroir_mesh_state" 409 InvalidRequest,
    MiroirAliasNotFound "miroir_alias_not_found" 404 InvalidRequest,
    MiroirAliasConflict "miroir_alias_conflict" 409 InvalidRequest,
    MiroirOperationNotFound "miroir_operation_not_found" 404 InvalidRequest,
    MiroirOperationState "miroir_operation_state" 409 InvalidRequest,
    MiroirIdempotencyKeyReused "miroir_idempotency_key_reused" 409 InvalidRequest,
    MiroirNoQuorum "miroir_no_quorum" 503 System,
    MiroirShardsUnavailable "miroir_shards_unavailable" 503 System,
    MiroirWriteUnknown "miroir_write_unknown" 504 System,
    MiroirIncomplete "miroir_incomplete" 409 Internal,
}

impl ErrorCode {
    /// The field `link`: Meilisearch's page for its codes, ours for `miroir_*`.
    pub fn link(self) -> String {
        let code = self.as_str();
        if code.starts_with("miroir_") {
            format!("docs/errors.md#{code}")
        } else {
            format!("https://docs.meilisearch.com/errors#{code}")
        }
    }
}
