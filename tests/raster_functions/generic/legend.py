# ruff: noqa
legend = {"displayFieldName": "", "fieldAliases": {"Value": "Value", "Class": "Class"}, "features": []}
