"""Written answers written anew, so that people like to read them: by a model that is asked, and by people."""
