"""WebShop (Yao et al. 2022) without Java, Flask or HTML parsing: catalogue, search, pages, reward."""
