def article_of(word):
    return "an" if word[0] in "aeiou" else "a"
