"""The HTTP contract: queries, uploads, response documents, problem documents, the OpenAPI document."""
