def normalize(text, words):
    text = text.strip().lower()
    return words.get(text, text)
