"""What is asked, out of the forms in which it may be asked."""


def user_text(prompt: str | list[dict[str, str]]) -> str:
    """The words of the user in a prompt: the prompt itself, or the last user message."""
    if isinstance(prompt, str):
        return prompt
    return next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
