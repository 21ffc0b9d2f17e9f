"""What is said of each way in which a request is not pinned, by the word that `PinEvent` has for it."""

IGNORED = {
    "invalid-session-id": "Its session id can't be used: it is empty, too long, a placeholder, holds control "
    "characters, or was sent twice with different values.",
    "body-too-large": "Its body is larger than limits.max_request_bytes.",
    "body-not-json": "Its body is no JSON object in UTF-8, or is too large or nested too deep to be read.",
    "body-encoded": "Its body has a content-encoding that can't be read: unknown, broken, or too large once decoded.",
    "body-signed": "Its body is signed, and a changed model would break the signature.",
    "model-not-routed": "It asks for a model that routing.router_models does not name, so the client chose, and not "
    "the router.",
}
UNPINNED = {
    "status": "Its answer is no 2xx, and only an answer that was served makes a pin.",
    "error": "Its answer is an error, whatever the status says.",
    "fallback": "The gateway says that its own fallback answered, which is no choice of the router.",
    "unless": "A rule of decisions.unless says that such an answer is no choice.",
    "unread": "The answer's body can't be looked at for its model, because of its content type or coding.",
    "unusable-model": "The name that the answer gives can't be sent as a model, or routing.router_models or "
    "routing.retired_models lists it.",
    "no-model": "The answer names no model where decisions.sources look.",
}
ELSEWHERE = {
    "pinned": "Where a server does otherwise, its log at DEBUG says why: asgi-session-pin serve --log-level debug.",
    "no-endpoint": "Only requests to models are pinned. If this is one, its path has to be among the endpoints.",
    "no-session": "The client has to send an id: -H 'X-Session-Id: ...', the same for all requests of a session.",
    "off": "Leave the header out.",
    "reset": "Send it once, where the session is to begin anew.",
    "invalid-session-id": "The client has to send a usable id: up to sessions.max_id_length bytes of text.",
    "body-not-json": "The client has to send JSON in UTF-8.",
    "body-encoded": "Let the client send its body as it is, or by gzip or deflate; br and zstd need "
    "asgi-session-pin[compression].",
    "body-signed": "Put the middleware before whatever signs, or pin in the signing client.",
    "status": "Nothing to set: the first request of the session that is served makes the pin.",
    "error": "Nothing to set: the first request of the session that is served makes the pin.",
    "fallback": "Nothing to set: the first request that the router's own choice answers makes the pin.",
    "unread": "The answer has to be JSON or events, plain or compressed by gzip, deflate, br or zstd (the last two "
    "with asgi-session-pin[compression]).",
    "unless": "Nothing to set: the first answer that no such rule names makes the pin.",
    "unusable-model": "The gateway has to name its choice: `asgi-session-pin probe` asks it where it does.",
    "no-model": "The gateway has to name its choice: `asgi-session-pin probe` asks it where it does. A router in the "
    "app can state it: get_session_pin(request).record(model).",
    "echo": "Right for a model's own name. If a router decides for this one, its answers have to name the choice: "
    "`asgi-session-pin probe` asks where they do.",
}
