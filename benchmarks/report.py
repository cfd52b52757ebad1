def show(path, results, pictures=True):
    print(path)
